"""How the API page reads xent's sources."""

import griffe


class Sections(griffe.Extension):
    def on_object(self, *, obj, **_):
        """mkdocstrings knows examples by the plural; `unknown` only takes what is to be named in an error."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
        if obj.is_function and "unknown" in obj.parameters:
            del obj.parameters["unknown"]
