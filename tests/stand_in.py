"""A server on the loopback interface whose answers a test decides."""

import http.server
import json
import threading


class StandIn:
    """Answers each POST by `answer(path, body, count) -> (status, bytes or an iterator of pieces)`; keeps what it was sent."""

    def __init__(self):
        self.bodies: list = []
        self.answer = lambda path, body, count: (200, b"{}")
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.bodies.append((body, {name.lower(): value for name, value in self.headers.items()}))
                answer = stand_in.answer(self.path, body, len(stand_in.bodies))
                if answer is None:  # cut off in the middle of a body
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"scores"')
                    self.close_connection = True
                    return
                status, content = answer
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if 300 <= status < 400:
                    self.send_header("Location", f"{stand_in.url}/elsewhere")
                pieces = [content] if isinstance(content, bytes) else content
                if pieces is not content:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)

            def log_message(self, *arguments):
                """The test prints what matters."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                """A client that does not wait for its answer is no failure."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def asked(body) -> str:
    """The text of the question that a chat request ends with."""
    return body["messages"][-1]["content"][0]["text"]


def chat_reply(text: str | None) -> tuple[int, bytes]:
    """The answer of a chat completion that says `text`."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, json.dumps(answer).encode()
