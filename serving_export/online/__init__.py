"""The online endpoint: the served model answers for the session in progress, over HTTP. Nothing is trained here."""
