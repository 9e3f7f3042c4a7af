"""asyncpg as it comes: every query is a named prepared statement that is kept; transactions, cursors, COPY."""

import asyncio
import io
import sys

import asyncpg

HOST, PORT, USER, PASSWORD, DATABASE = sys.argv[1:6]
CLIENTS = 8


def connect():
    return asyncpg.connect(host=HOST, port=int(PORT), user=USER, password=PASSWORD, database=DATABASE)


async def prepared_and_kept():
    conn = await connect()
    statement = await conn.prepare("SELECT $1::int * 3")
    for n in range(30):
        assert await statement.fetchval(n) == n * 3
        assert await conn.fetchval("SELECT $1::text", "v%d" % n) == "v%d" % n
    await conn.close()


async def transactions():
    conn = await connect()
    await conn.execute("CREATE TABLE IF NOT EXISTS asyncpg_rows (n int)")
    async with conn.transaction():
        await conn.executemany("INSERT INTO asyncpg_rows VALUES ($1)", [(n,) for n in range(500)])
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO asyncpg_rows VALUES (1000)")
                raise KeyError
        except KeyError:
            pass
    assert await conn.fetchval("SELECT count(*) FROM asyncpg_rows") == 500
    try:
        await conn.fetchval("SELECT 1 / $1::int", 0)
        raise AssertionError("a division by zero went through")
    except asyncpg.DivisionByZeroError:
        pass
    assert await conn.fetchval("SELECT 1 / $1::int", 1) == 1
    await conn.execute("DROP TABLE asyncpg_rows")
    await conn.close()


async def cursors():
    conn = await connect()
    async with conn.transaction():
        total = 0
        async for row in conn.cursor("SELECT generate_series(1, $1::int)", 1000, prefetch=100):
            total += row[0]
        assert total == 500500
    await conn.close()


async def copies():
    conn = await connect()
    async with conn.transaction():
        await conn.execute("CREATE TEMP TABLE copied (n int, t text) ON COMMIT DROP")
        records = [(n, "text %d" % n) for n in range(5000)]
        await conn.copy_records_to_table("copied", records=records)
        out = io.BytesIO()
        await conn.copy_from_query("SELECT * FROM copied", output=out)
        assert out.getvalue().count(b"\n") == 5000
    await conn.close()


async def timeouts_cancel():
    """A timeout in asyncpg sends a cancel request; the connection goes on."""
    conn = await connect()
    try:
        await conn.fetchval("SELECT pg_sleep(60)", timeout=0.3)
        raise AssertionError("a minute passed in 0.3 s")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("SELECT 7") == 7
    await conn.close()


async def many_at_once():
    async def client(number):
        conn = await connect()
        for n in range(40):
            row = await conn.fetchrow("SELECT $1::int + %d AS sum, 'client %d' AS who" % (number, number), n)
            assert (row["sum"], row["who"]) == (n + number, "client %d" % number), row
        await conn.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


async def main():
    for check in (prepared_and_kept, transactions, cursors, copies, timeouts_cancel, many_at_once):
        await check()
        print("ok", check.__name__, flush=True)


asyncio.run(main())
