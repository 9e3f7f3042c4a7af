"""psycopg 3 as it comes: prepared statements after five uses, pipelines, server cursors, COPY, many clients at once."""

import sys
import threading

import psycopg

CONNINFO = sys.argv[1]
CLIENTS = 8


def connect(**options):
    return psycopg.connect(CONNINFO, **options)


def prepared_by_itself():
    """The sixth execution prepares; the statement must be there on whatever server the transaction gets."""
    with connect(autocommit=True) as conn:
        for n in range(30):
            row = conn.execute("SELECT %s::int + 1, %s::text", (n, "x" * n)).fetchone()
            assert row == (n + 1, "x" * n), row
        with conn.transaction():
            assert conn.execute("SELECT %s::int + 1, %s::text", (41, "y")).fetchone() == (42, "y")


def an_error_leaves_the_connection_usable():
    with connect() as conn:
        for _ in range(12):
            try:
                conn.execute("SELECT 1 / %s", (0,))
                raise AssertionError("a division by zero went through")
            except psycopg.errors.DivisionByZero:
                conn.rollback()
            assert conn.execute("SELECT 1 / %s", (1,)).fetchone() == (1,)
            conn.commit()


def pipelines():
    with connect(autocommit=True) as conn:
        with conn.pipeline():
            cursors = [conn.execute("SELECT %s::int * 2", (n,)) for n in range(200)]
            assert [cursor.fetchone()[0] for cursor in cursors] == [n * 2 for n in range(200)]
        try:
            with conn.pipeline():
                conn.execute("SELECT 1")
                conn.execute("SELECT * FROM nowhere")
                conn.execute("SELECT 2")
            raise AssertionError("a pipeline over a missing table went through")
        except psycopg.errors.UndefinedTable:
            pass
        assert conn.execute("SELECT 3").fetchone() == (3,)


def server_cursors():
    with connect() as conn:
        with conn.cursor(name="rows") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            assert sum(row[0] for row in cursor) == 500500


def copies():
    with connect() as conn:
        conn.execute("CREATE TEMP TABLE copied (n int, t text) ON COMMIT DROP")
        with conn.cursor() as cursor:
            with cursor.copy("COPY copied FROM STDIN") as copy:
                for n in range(5000):
                    copy.write_row((n, "text %d" % n))
            with cursor.copy("COPY copied TO STDOUT") as copy:
                assert sum(1 for _ in copy.rows()) == 5000
        conn.commit()
        try:
            with conn.cursor() as cursor, cursor.copy("COPY (SELECT 1/0) TO STDOUT") as copy:
                list(copy.rows())
            raise AssertionError("a failing COPY went through")
        except psycopg.errors.DivisionByZero:
            conn.rollback()
        assert conn.execute("SELECT 1").fetchone() == (1,)


def many_at_once():
    """More clients than servers, each with statements of its own under the same names."""
    failures = []

    def client(number):
        try:
            with connect(autocommit=True) as conn:
                for n in range(40):
                    query = "SELECT %%s::int + %d, 'client %d'" % (number, number)
                    row = conn.execute(query, (n,)).fetchone()
                    assert row == (n + number, "client %d" % number), row
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


for check in (
    prepared_by_itself,
    an_error_leaves_the_connection_usable,
    pipelines,
    server_cursors,
    copies,
    many_at_once,
):
    check()
    print("ok", check.__name__, flush=True)
