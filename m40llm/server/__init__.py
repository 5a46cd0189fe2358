"""An HTTP server for OpenAI's clients, and for a person with a browser (docs/server.md).

Importing this loads nothing: `app.create_app` makes the ASGI application, `run.run` serves it.
Needs the extra `server`.
"""
