"""How the API page reads xent's docstrings: an `Example:` is a section with code, as `Examples:` is to mkdocstrings."""

import griffe


class Sections(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
