#!/usr/bin/python3
"""The application of www.foobar.com: people log in, write notes and read them. Sessions and notes are in the database.

It knows two addresses of the database, both of the load balancers: db-write leads to the primary, db-read to a
replica, or to the primary where there is no replica.

Answers are JSON. After a write the position in the database's log goes back to the browser as a cookie; reads wait
until the replica has come that far, so that everybody reads what he wrote.
"""

import hashlib
import hmac
import http.cookies
import json
import secrets
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pymysql

DB_WRITE = "10.0.0.20"
DB_READ = "10.0.0.30"
PASSWORD = open("/etc/foobar/db-password").read().strip()
# How long a request tries to reach a database: longer than a takeover of the balancers or the discovery of a dead
# server takes.
PATIENCE = 6.0
# Errors that come before anything was done, or of a read: refused, lost, cannot connect, time is up.
LOST = {1927, 2003, 2006, 2013, 2014}
READ_ONLY = {1290, 1836, 4140}

ME = socket.gethostname()
counts_lock = threading.Lock()
counts = {}


def connect(host):
    return pymysql.connect(host=host, user="app", password=PASSWORD, database="foobar", autocommit=True,
                           connect_timeout=2, read_timeout=10, write_timeout=10, charset="utf8mb4")


class Unavailable(Exception):
    """The database cannot do it now; the text is for the user."""


def read(position, query, arguments):
    """Rows of a query, from a server that has what this user wrote, else from the primary."""
    end = time.monotonic() + PATIENCE
    host = DB_READ
    while True:
        try:
            connection = connect(host)
            try:
                with connection.cursor() as cursor:
                    if position and host == DB_READ:
                        # Where the primary stands in there is nothing to wait for.
                        cursor.execute("SELECT IF(@@read_only, MASTER_GTID_WAIT(%s, 2), 0)", (position,))
                        if cursor.fetchone()[0] != 0:
                            host = DB_WRITE    # this replica is behind
                            continue
                    cursor.execute(query, arguments)
                    return cursor.fetchall()
            finally:
                connection.close()
        except pymysql.err.OperationalError as error:
            if error.args[0] not in LOST:
                raise
            if time.monotonic() > end:
                raise Unavailable("the database cannot be read at the moment") from error
        # Reading can be tried again without harm: in turn at the replicas and at the primary.
        host = DB_WRITE if host == DB_READ else DB_READ
        time.sleep(0.1)


def write(*statements):
    """Carries out statements in one transaction; returns the last insert's id and the position in the log."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection = connect(DB_WRITE)
            break
        except pymysql.err.OperationalError as error:
            # A refusal is the balancer's word that nobody takes writes. It may be a takeover: for a moment, ask again.
            if error.args[0] not in LOST:
                raise
            if time.monotonic() > end:
                raise Unavailable("the database takes no writes at the moment, nothing was written") from error
            time.sleep(0.1)
    try:
        connection.begin()
        with connection.cursor() as cursor:
            for statement, arguments in statements:
                cursor.execute(statement, arguments)
            row = cursor.lastrowid
            connection.commit()
            cursor.execute("SELECT @@last_gtid")
            return row, cursor.fetchone()[0]
    except (pymysql.err.OperationalError, pymysql.err.InternalError) as error:
        if error.args[0] in READ_ONLY:
            raise Unavailable("the database takes no writes at the moment, nothing was written") from error
        if error.args[0] in LOST:
            raise Unavailable("the database was lost while writing: look whether it was written") from error
        raise
    finally:
        connection.close()


def digest(password, salt):
    # 1,000 rounds only: this is an example on a small machine. Take 600,000.
    return hashlib.pbkdf2_hmac("sha256", password.encode(), bytes.fromhex(salt), 1000).hex()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    # Head and body leave together: the body does not wait until the head was acknowledged, by way of a balancer.
    wbufsize = -1

    def log_message(self, *_):
        pass

    def answer(self, status, data, cookies=()):
        body = data.encode() if isinstance(data, str) else json.dumps({**data, "server": ME}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(data, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Application", ME)
        for name, value in cookies:
            self.send_header("Set-Cookie", f"{name}={value}; Path=/; Secure; HttpOnly; SameSite=Strict")
        self.end_headers()
        self.wfile.write(body)
        with counts_lock:
            counts[status] = counts.get(status, 0) + 1

    def cookie(self, name):
        morsel = http.cookies.SimpleCookie(self.headers.get("Cookie", "")).get(name)
        return morsel.value if morsel else ""

    def user(self):
        token = hashlib.sha256(self.cookie("session").encode()).hexdigest()
        rows = read(self.cookie("position"), "SELECT user FROM sessions WHERE token = %s", (token,))
        return rows[0][0] if rows else None

    def handle_one(self, method):
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length", 0))
        form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
        if path == "/healthz":
            return self.answer(200, "ok\n")
        if path == "/metrics":
            with counts_lock:
                lines = [f'app_requests_total{{status="{s}"}} {n}' for s, n in sorted(counts.items())]
            return self.answer(200, "# TYPE app_requests_total counter\n" + "\n".join(lines) + "\n")
        if path == "/app/whoami":
            return self.answer(200, {})
        if path == "/app/login" and method == "POST":
            return self.login(form)
        if path == "/app/notes":
            user = self.user()
            if user is None:
                return self.answer(403, {"error": "log in first"})
            if method == "POST":
                row, position = write(("INSERT INTO notes (user, body) VALUES (%s, %s)", (user, form.get("body", ""))))
                return self.answer(200, {"id": row}, [("position", position)])
            rows = read(self.cookie("position"),
                        "SELECT id, body FROM notes WHERE user = %s ORDER BY id DESC LIMIT 20", (user,))
            return self.answer(200, {"notes": [{"id": r[0], "body": r[1]} for r in rows]})
        return self.answer(404, {"error": "no such page"})

    def login(self, form):
        rows = read("", "SELECT salt, hash FROM users WHERE user = %s", (form.get("user", ""),))
        if not rows or not hmac.compare_digest(digest(form.get("password", ""), rows[0][0]), rows[0][1]):
            return self.answer(403, {"error": "wrong name or password"})
        token = secrets.token_hex(16)
        _, position = write(("INSERT INTO sessions (token, user) VALUES (%s, %s)",
                             (hashlib.sha256(token.encode()).hexdigest(), form["user"])))
        return self.answer(200, {"user": form["user"]}, [("session", token), ("position", position)])

    def guarded(self, method):
        try:
            self.handle_one(method)
        except Unavailable as error:
            print(error, error.__cause__, file=sys.stderr, flush=True)
            self.answer(503, {"error": str(error)})
        except pymysql.err.Error as error:
            print("database:", error, file=sys.stderr, flush=True)
            self.answer(500, {"error": "the database said no"})

    def do_GET(self):
        self.guarded("GET")

    def do_POST(self):
        self.guarded("POST")


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self):
        # IPv4 too.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)


if __name__ == "__main__":
    Server(("::", 8080), Handler).serve_forever()
