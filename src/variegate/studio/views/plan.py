"""The plan of a run: three cards, one slider, what to expect, and the drawer of everything."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate.errors import RecipeError
from variegate.recipe import Recipe
from variegate.studio.frame import Form, Refused, Studio, folder_name, found, go, number_in, page
from variegate.studio.planning import (
    CARDS,
    LEVELS,
    drawer,
    estimate,
    forecast,
    recipe_of,
    settings_of,
)
from variegate.studio.sets import PictureSet
from variegate.studio.views.home import speeds_of
from variegate.studio.views.pictures import seen_audit

EDITED = "set:"  # before the path of an entry that was changed in the drawer


def plan(studio: Studio, request: Request, form: Form) -> Response:
    pictures = found(studio.desk.set(request.path_params["set"]))
    if not pictures.count():
        return go_back(studio, pictures)
    audit, _ = seen_audit(studio, pictures)
    asked = _asked(studio, {})
    return page(
        studio,
        request,
        "plan.html",
        set=pictures,
        id=studio.desk.id_of(pictures.folder),
        count=pictures.count(),
        shown=[studio.desk.show(s.file) for s in pictures.shots()[:6]],
        cards=list(CARDS),
        levels=LEVELS,
        expected=forecast(audit) if audit else None,
        **asked,
        **_expectation(studio, pictures, asked, {}),
    )


def preview(studio: Studio, request: Request, form: Form) -> Response:
    """What the plan as it stands will take."""
    pictures = found(studio.desk.set(request.path_params["set"]))
    given = dict(request.query_params)
    asked = _asked(studio, given)
    context = _expectation(studio, pictures, asked, _edited(given))
    return page(studio, request, "plan_estimate.html", **asked, **context)


def all_entries(studio: Studio, request: Request, form: Form) -> Response:
    """The drawer, as the cards and the slider leave it, with what was changed in it."""
    found(studio.desk.set(request.path_params["set"]))
    given = dict(request.query_params)
    asked = _asked(studio, given)
    edited = _edited(given)
    kind = {k: v for k, v in edited.items() if k == "adapter.kind"}
    try:
        recipe = _recipe(asked, kind)
    except RecipeError as error:
        raise Refused(str(error)) from error
    tables, strategies = drawer(recipe, edited)
    return page(studio, request, "plan_drawer.html", tables=tables, strategies=strategies)


def start(studio: Studio, request: Request, form: Form) -> Response:
    pictures = found(studio.desk.set(request.path_params["set"]))
    trigger, noun = form.get("trigger", "").strip(), form.get("noun", "").strip()
    if not trigger or not noun:
        raise Refused(studio.words("plan.needs_words"))
    pictures.tell(trigger=trigger, noun=noun)
    asked = _asked(studio, form)
    settings = _settings(asked, _edited(form))
    given = {"images": str(pictures.folder), "trigger": trigger, "class_noun": noun}
    recipe_of(settings, asked["base"], **given)  # refuses with all its faults, before any work
    runs, jobs = studio.desk.home / "runs", studio.desk.jobs
    # A job makes its folder only once it has begun.
    asked_for = {j.about for j in jobs.all() if not j.over}
    name = folder_name(
        form.get("name") or pictures.name,
        lambda n: (runs / n).exists() or str(runs / n) in asked_for,
    )
    verb = "train" if asked["card"] == "style" else "trial"
    words = [verb, str(pictures.folder), "--base", asked["base"]]
    words += ["--trigger", trigger, "--class", noun, "--out", str(runs / name)]
    words += [word for setting in settings for word in ("--set", setting)]
    if verb == "trial" and (encoder := studio.desk.settings().get("encoder")):
        words += ["--encoder", str(encoder)]
    title = studio.words("jobs.learn", name=pictures.name)
    jobs.add(words, title=title, lane="device", about=str(runs / name))
    studio.desk.forget_listing()
    return go("/runs")


def go_back(studio: Studio, pictures: PictureSet) -> Response:
    where = f"/pictures/{studio.desk.id_of(pictures.folder)}"
    return Response(status_code=303, headers={"location": where})


def _asked(studio: Studio, given: Form) -> dict[str, Any]:
    card = given.get("card", "thing")
    kept = str(studio.desk.settings().get("base") or "pocket")
    return {
        "card": card if card in CARDS else "thing",
        "level": int(number_in(given, "level", LEVELS[0], LEVELS[-1], 0)),
        "base": given.get("base", "").strip() or kept,
    }


def _edited(given: Form) -> dict[str, str]:
    """The entries that were changed in the drawer; an emptied one is the recipe's own again."""
    found = {k.removeprefix(EDITED): v.strip() for k, v in given.items() if k.startswith(EDITED)}
    return {k: v for k, v in found.items() if v}


def _settings(asked: dict[str, Any], edited: dict[str, str]) -> list[str]:
    for path, value in edited.items():
        if any(c in path + value for c in "\r\n\0") or "=" in path:
            raise Refused(f"{path}: a setting is one line")
    # Tables before what is in them: a strategy that is switched on may be set, too.
    ordered = sorted(edited.items(), key=lambda item: item[0].count("."))
    made = [f"{path}={value}" for path, value in ordered]
    return [*settings_of(asked["card"], asked["level"], asked["base"]), *made]


def _recipe(asked: dict[str, Any], edited: dict[str, str]) -> Recipe:
    return recipe_of(_settings(asked, edited), asked["base"])


def _expectation(
    studio: Studio, pictures: PictureSet, asked: dict[str, Any], edited: dict[str, str]
) -> dict[str, Any]:
    try:
        recipe, wrong = _recipe(asked, edited), ""
    except RecipeError as error:
        wrong = str(error)
        return {"guess": None, "wrong": wrong, "cautions": [], "steps": 0, "settings": []}
    guess = estimate(
        studio.desk,
        recipe,
        free=studio.free,
        pictures=pictures.count(),
        speeds=speeds_of(studio),
    )
    return {
        "guess": guess,
        "wrong": wrong,
        "cautions": recipe.cautions,
        "steps": recipe.optimizer.steps,
        "settings": _settings(asked, edited),
    }
