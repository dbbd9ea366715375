"""The page at ``/``: HTML, CSS and JavaScript modules, as browsers load them, without a build step."""
