"""The process that `test_killed` kills: forks children that work on a ledger until they die.

One line of JSON on stdin starts one child, whose process id is the first line of the
answer. A child that is told `die_at` ends itself, as by SIGKILL, at that step of its work:
before every SQL statement that changes something, before and after every commit and every
call that changes the disk. This process imports the owner's side once, and never TensorFlow,
which would make forking unsafe.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from keras_encryip.authority.authority import Authority

PASSPHRASE = "owner's passphrase"
FAST = 14


class Countdown:
    """Ends the process at the n-th step; never, for n = 0."""

    def __init__(self, die_at: int) -> None:
        self.left = die_at
        self.taken = 0

    def step(self) -> None:
        self.taken += 1
        self.left -= 1
        if self.left == 0:
            os._exit(9)

    def statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            self.step()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.step()
            result = function(*arguments, **keywords)
            self.step()
            return result

        return wrapped

    def install(self, *, statements: bool = True) -> None:
        for name in ("open", "fsync", "link", "unlink"):
            setattr(os, name, self.around(getattr(os, name)))
        SQLiteDialect_pysqlite.do_commit = self.around(SQLiteDialect_pysqlite.do_commit)  # type: ignore[method-assign]
        if statements:
            sa.event.listen(sa.Engine, "before_cursor_execute", self.statement)


def say(*words: object) -> None:
    print(*words, flush=True)


def issue(authority: Authority, subject: str, path: str) -> None:
    authority.issue(subject, path, passphrase="correct horse", scrypt_log2_n=FAST)


def work(order: dict[str, Any]) -> None:
    """Do one task, or go on issuing and revoking for ever."""
    if order["task"] == "import":
        say(*sorted({"tensorflow", "keras"} & set(sys.modules)))
        return
    countdown = Countdown(order.get("die_at", 0))
    if order["task"] == "create":
        countdown.install(statements=False)  # they go to a temporary file
        Authority.create(order["url"], PASSPHRASE, threshold=2, scrypt_log2_n=FAST)
        say("done", countdown.taken)
        return
    authority = Authority.open(order["url"], PASSPHRASE)
    say("open")
    countdown.install()
    if order["task"] == "issue":
        issue(authority, "carol", order["path"])
    elif order["task"] == "revoke":
        authority.revoke("alice")
    else:
        for number in numbers(order["first"]):
            issue(authority, f"user{number}", f"{order['path']}/user{number}.keybundle")
            say("issued", f"user{number}")
            if number % 3 == 0:
                authority.revoke(f"user{number}")
                say("revoked", f"user{number}")
    say("done", countdown.taken)


def numbers(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                work(json.loads(line))
            except BaseException as error:
                say("failed:", repr(error))
            finally:
                os._exit(0)
        say(child)
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
