"""Which settings keep variety, and at what likeness: found by trying, and told with how sure.

`search` is the story; `ranges` parses what is asked, `point` is one trial, `book` the study that
several processes share, `front` and `effects` what its numbers say, `explain` what is known of each
knob beforehand.
"""
