"""The bank's application, behind a node's proxy: POST /transfer moves money and answers
200 once it is committed. Arguments: the directory of the databases, the port."""

import http.server
import os
import signal
import sqlite3
import sys
import time
import urllib.parse

ROOT, PORT = sys.argv[1], int(sys.argv[2])


def transfer(bank, n, giver, taker, amount):
    # Never made anew: the mount may be gone at this moment.
    db = sqlite3.connect(f"file:{ROOT}/{bank}?mode=rw", uri=True, isolation_level=None, timeout=1)
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, giver))
        db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, taker))
        db.execute("INSERT INTO ledger VALUES(?)", (n,))
        db.execute("COMMIT")
    finally:
        db.close()


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        numbers = [int(asked[key]) for key in ("n", "from", "to", "amount")]
        try:
            transfer(asked["bank"], *numbers)
            status, text = 200, "done"
        except sqlite3.Error as error:
            status, text = 503, str(error)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client whose patience was over is no news."""


# What is told to stop has not failed.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    try:
        server = Server(("127.0.0.1", PORT), App)
        break
    except OSError:
        # The one before is about to end.
        time.sleep(0.05)
server.serve_forever()
