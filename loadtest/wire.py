"""PostgreSQL's protocol, as much of it as load needs and pgbench cannot do: COPY streams and thousands of idle clients.

Trust authentication only. Messages (protocol chapter 55.7): a tag byte, a length that counts itself, a body.
"""

import selectors
import socket
import struct
from collections import deque

HEADER = struct.Struct("!cI")
RECEIVE_BYTES = 1 << 20     # per recv: large, so that Python costs little per row
SEND_BYTES = 1 << 18        # per sendall of a COPY stream
IO_SECONDS_MAX = 60         # any single wait for the other side
LOGINS_AT_ONCE_MAX = 64     # below every pooler's listen backlog (PgBouncer: 128)


class ServerError(OSError):
    """An ErrorResponse; the text is its message. An OSError, because while a server starts it is as good as a refused connect."""


def startup_message(user="postgres", database="postgres"):
    body = struct.pack("!I", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack("!I", len(body) + 4) + body


def message(tag, body=b""):
    return HEADER.pack(tag, len(body) + 4) + body


def query_message(sql):
    return message(b"Q", sql.encode() + b"\0")


def error_text(body):
    """The human-readable field of an ErrorResponse's body."""
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    return f"{fields.get(b'S', 'ERROR')}: {fields.get(b'M', '')} ({fields.get(b'C', '')})"


class Deframer:
    """Cuts received bytes into messages. Bodies of CopyData and DataRow are counted, never kept."""

    COUNTED = (b"d", b"D")

    def __init__(self):
        self.counted_bytes = 0
        self._rest = b""

    def feed(self, received):
        """The complete messages that are not merely counted, as (tag, body)."""
        data = self._rest + received if self._rest else bytes(received)
        messages, at, end = [], 0, len(data)
        while end - at >= HEADER.size:
            tag, length = HEADER.unpack_from(data, at)
            if end - at < length + 1:
                break
            if tag in self.COUNTED:
                self.counted_bytes += length - 4
            else:
                messages.append((tag, data[at + 5:at + 1 + length]))
            at += length + 1
        self._rest = data[at:]
        return messages


class Connection:
    """A blocking client connection, logged in."""

    def __init__(self, host, port):
        self._deframer = Deframer()
        self._arrived = deque()
        self._socket = socket.create_connection((host, port), timeout=IO_SECONDS_MAX)
        try:
            self._socket.sendall(startup_message())
            self._until_ready()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            self._socket.sendall(message(b"X"))
        except OSError:
            pass    # the other side was faster
        self._socket.close()

    def query(self, sql):
        """Run by the simple protocol; returns the bytes of rows that came back."""
        before = self._deframer.counted_bytes
        self._socket.sendall(query_message(sql))
        self._until_ready()
        return self._deframer.counted_bytes - before

    def copy_out(self, sql):
        """Run COPY ... TO STDOUT and throw the data away; returns its bytes."""
        return self.query(sql)

    def copy_in(self, sql, chunk, chunks):
        """Run COPY ... FROM STDIN with `chunks` CopyData messages of `chunk` each; returns the bytes of data sent."""
        self._socket.sendall(query_message(sql))
        self._until_tag(b"G")
        framed = message(b"d", chunk)
        at_once = max(1, SEND_BYTES // len(framed))
        block = framed * at_once
        for _ in range(chunks // at_once):
            self._socket.sendall(block)
        self._socket.sendall(framed * (chunks % at_once) + message(b"c"))
        self._until_ready()
        return len(chunk) * chunks

    def _until_ready(self):
        self._until_tag(b"Z")

    def _until_tag(self, wanted):
        """Read on to `wanted`; an error met on the way is raised once the server is ready again or has hung up."""
        error = None
        while True:
            tag, body = self._next()
            if tag == b"E":
                error = error or ServerError(error_text(body))
                if error_is_final(body):
                    raise error
            elif tag == b"Z" and error:
                raise error
            elif tag == wanted:
                return
            elif tag == b"R" and body != b"\0\0\0\0":
                raise ServerError("the server wants a password; these tests know trust only")

    def _next(self):
        while not self._arrived:
            received = self._socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._arrived.extend(self._deframer.feed(received))
        return self._arrived.popleft()


def error_is_final(body):
    """After FATAL and PANIC no ReadyForQuery follows."""
    return error_text(body).startswith(("FATAL", "PANIC"))


class IdleClients:
    """Many clients that logged in, ran one query, and now sit there. Opened a few at a time by one selector."""

    def __init__(self, port):
        self._port = port
        self._sockets = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._selector.close()
        for client in self._sockets:
            client.close()

    def open(self, count):
        """Returns when all `count` clients have their query's answer; raises OSError when one is refused or nothing moves."""
        steps = {}      # socket -> the _Login in progress
        unopened = count
        while unopened or steps:
            while unopened and len(steps) < LOGINS_AT_ONCE_MAX:
                client = self._connect()
                steps[client] = _Login(client)
                unopened -= 1
            ready = self._selector.select(IO_SECONDS_MAX)
            if not ready:
                raise TimeoutError(f"{len(steps)} clients wait for an answer since {IO_SECONDS_MAX} s")
            for key, _ in ready:
                if steps[key.fileobj].advance():
                    self._selector.unregister(key.fileobj)
                    del steps[key.fileobj]

    def _connect(self):
        client = socket.create_connection(("127.0.0.1", self._port), timeout=IO_SECONDS_MAX)
        self._sockets.append(client)
        self._selector.register(client, selectors.EVENT_READ)
        return client


class _Login:
    """One idle client on its way: startup sent, awaiting ReadyForQuery; then query sent, awaiting the second one."""

    def __init__(self, client):
        self._client = client
        self._deframer = Deframer()
        self._owed = [query_message("SELECT 1")]
        client.sendall(startup_message())

    def advance(self):
        """Take what has arrived; True once the client is idle for good."""
        received = self._client.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionResetError("the server closed the connection")
        for tag, body in self._deframer.feed(received):
            if tag == b"E":
                raise ServerError(error_text(body))
            if tag == b"Z":
                if not self._owed:
                    return True
                self._client.sendall(self._owed.pop())
        return False
