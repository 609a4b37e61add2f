// Search runs in a worker, and browsers let no page that is opened from disk start one. There, and
// only there, a hidden frame runs the worker's script in its place and passes on what is said.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        const start = () => {
          document.body.append(frame);
          const inside = frame.contentWindow;
          inside.postMessage = (data) => {
            const event = new MessageEvent("message", { data });
            if (this.onmessage) this.onmessage(event);
            this.dispatchEvent(event);
          };
          inside.importScripts = (...urls) =>
            Promise.all(urls.map((each) => this.load(frame.contentDocument, new URL(each, url))));
          this.load(frame.contentDocument, url).then(() => resolve(inside));
        };
        if (document.body) start();
        else addEventListener("DOMContentLoaded", start);
      });
      this.frame = frame;
    }

    load(page, url) {
      return new Promise((resolve, reject) => {
        const script = page.createElement("script");
        script.src = url;
        script.onload = resolve;
        script.onerror = reject;
        page.body.append(script);
      });
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
