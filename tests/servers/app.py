"""The applications below gunicorn (wsgi) and uvicorn (asgi): each answer names the generation that serves."""

import os

BODY = f"generation {os.environ['SERVER_STARTER_GENERATION']}\n".encode()


def wsgi(environ, start_response):
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]
    start_response("200 OK", headers)
    return [BODY]


async def asgi(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
