"""Checks of the protocol, driven by the unmodified client from PyPI (pie-client 0.1.0).

usage: conformance.py CHECK

Each check is one function and ends without output worth reading, or with a traceback. `conformance.rs` starts a
server for each and says where it is by TARTLET_URL, TARTLET_TOKEN, TARTLET_OTHER_TOKEN, TARTLET_KEY, TARTLET_GUESTS.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import blake3
from pie.client import Event, PieClient

URL = os.environ["TARTLET_URL"]
TOKEN = os.environ["TARTLET_TOKEN"]
OTHER_TOKEN = os.environ["TARTLET_OTHER_TOKEN"]
GUESTS = Path(os.environ["TARTLET_GUESTS"])
PATIENCE = 120  # seconds for one answer


@asynccontextmanager
async def connection(token=TOKEN):
    async with PieClient(URL) as client:
        successful, result = await soon(client.authenticate(token))
        assert successful, result
        yield client


def soon(awaitable):
    return asyncio.wait_for(awaitable, PATIENCE)


def program(name):
    data = (GUESTS / f"{name}.wasm").read_bytes()
    return data, blake3.blake3(data).hexdigest()


async def launch(client, name, *arguments):
    data, digest = program(name)
    if not await soon(client.program_exists(digest)):
        await soon(client.upload_program(data))
    return await soon(client.launch_instance(digest, list(arguments)))


async def expect(instance, event, message):
    got = await soon(instance.recv())
    assert got == (event, message), f"expected {event}, {message!r:.200}; got {got!r:.200}"


async def authenticate():
    async with PieClient(URL) as client:
        assert await soon(client.query("program_exists", "0" * 64)) == (False, "Not authenticated")
        assert await soon(client.authenticate("not a token")) == (False, "Invalid token")
        assert await soon(client.authenticate(TOKEN)) == (True, "tester")
        assert await soon(client.authenticate(TOKEN)) == (True, "Already authenticated")
    async with PieClient(URL) as client:
        assert await soon(client.authenticate(OTHER_TOKEN)) == (True, "other")


async def upload_and_exists():
    data, digest = program("chat")  # several chunks
    assert len(data) > 2 * 256 * 1024
    async with connection() as client:
        assert not await soon(client.program_exists(digest))
        await soon(client.upload_program(data))
        assert await soon(client.program_exists(digest))
        await soon(client.upload_program(data))  # once more does no harm
        try:
            await soon(client.upload_program(b"no program at all"))
            raise AssertionError("that is no program")
        except Exception as error:
            assert "Upload Program failed" in str(error), error
        try:
            await soon(client.launch_instance("0" * 64))
            raise AssertionError("there is no such program")
        except Exception as error:
            assert f"No such program with hash={'0' * 64}" in str(error), error
        assert await soon(client.query("weather", "")) == (False, "Unknown query subject: weather")
        successful, status = await soon(client.query("model_status", ""))
        assert successful
        status = json.loads(status)
        assert any(key.endswith(".model.name") for key in status), status
        assert all(isinstance(value, str) for value in status.values()), status


async def launch_with_arguments():
    async with connection() as client:
        words = ["plain", "", "two words", "--flag", "ünïcödé 🥧"]
        instance = await launch(client, "echo", "--return", "done", *words)
        for word in words:
            await expect(instance, Event.Message, word)
        await expect(instance, Event.Completed, "done")
        instance = await launch(client, "echo")
        await expect(instance, Event.Completed, "0")


async def signals_and_messages():
    async with connection() as client:
        instance = await launch(client, "echo", "--messages", "200")
        for number in range(200):
            await instance.send(f"number {number}")
        for number in range(200):
            await expect(instance, Event.Message, f"number {number}")
        await expect(instance, Event.Completed, "200")
        await instance.send("to nobody")  # ignored
        assert not await soon(client.program_exists("0" * 64))


async def blobs_both_ways():
    chunk = 256 * 1024
    sizes = [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * 1024 * 1024]
    async with connection() as client:
        instance = await launch(client, "echo", "--blobs", str(len(sizes)))
        for size in sizes:
            blob = bytes((size + i) % 251 for i in range(size))
            await soon(instance.upload_blob(blob))
            await expect(instance, Event.Blob, blob)
        await expect(instance, Event.Completed, str(len(sizes)))
        # One that is sent at once, before that client has made a place for it.
        instance = await launch(client, "echo", "--blob", "300000")
        await expect(instance, Event.Blob, bytes(i % 251 for i in range(300000)))
        await expect(instance, Event.Completed, "0")
        try:
            await soon(client.upload_blob(instance.instance_id, b"too late"))
            raise AssertionError("the instance has ended")
        except Exception as error:
            assert "Upload Blob failed" in str(error), error


async def terminate():
    async with connection() as client:
        instance = await launch(client, "echo", "--messages", "forever")
        await instance.send("once")
        await expect(instance, Event.Message, "once")
        await instance.terminate()
        await expect(instance, Event.Aborted, "Signal termination")


async def an_error_is_an_exception():
    async with connection() as client:
        instance = await launch(client, "echo", "--fail", "as asked", "first")
        await expect(instance, Event.Message, "first")
        await expect(instance, Event.Exception, "Runtime error: as asked")


async def an_instant_end_is_not_lost():
    async with connection() as client:
        for number in range(50):
            instance = await launch(client, "echo", "--return", str(number), "before the end")
            await expect(instance, Event.Message, "before the end")
            await expect(instance, Event.Completed, str(number))
        instances = [await launch(client, "echo", "--return", str(number)) for number in range(50)]
        for number, instance in enumerate(instances):
            await expect(instance, Event.Completed, str(number))


async def two_clients_at_once():
    async def session(token, name):
        async with connection(token) as client:
            instance = await launch(client, "echo", "--messages", "20")
            for number in range(20):
                await instance.send(f"{name} {number}")
                await expect(instance, Event.Message, f"{name} {number}")
            await expect(instance, Event.Completed, "20")

    await asyncio.gather(session(TOKEN, "a"), session(OTHER_TOKEN, "b"))
    # Nobody reaches another's instance.
    async with connection() as owner, connection(OTHER_TOKEN) as other:
        instance = await launch(owner, "echo", "--messages", "1")
        await other.signal_instance(instance.instance_id, "from a stranger")
        await other.terminate_instance(instance.instance_id)
        try:
            await soon(other.upload_blob(instance.instance_id, b"from a stranger"))
            raise AssertionError("it is not theirs")
        except Exception as error:
            assert f"Instance not owned by client: {instance.instance_id}" in str(error), error
        await instance.send("from the owner")
        await expect(instance, Event.Message, "from the owner")
        await expect(instance, Event.Completed, "1")


async def disconnect_in_mid_run():
    async with connection() as client:
        await launch(client, "echo", "--messages", "forever")
        await launch(client, "rogue", "spin")
        await launch(client, "chat", "--max-tokens", "5000", "--user", "Count to one thousand.")
    async with connection() as client:
        deadline = time.monotonic() + PATIENCE
        while True:
            _, status = await soon(client.query("model_status", ""))
            status = json.loads(status)
            running = [int(n) for key, n in status.items() if key.endswith(".instances.active_count")]
            used = [int(n) for key, n in status.items() if key.endswith(".resource.0.used")]
            if running == [0] and used == [0]:
                break
            assert time.monotonic() < deadline, f"instances or pages stay behind: {status}"
            await asyncio.sleep(0.1)
        instance = await launch(client, "echo", "--return", "all well")
        await expect(instance, Event.Completed, "all well")


async def chat():
    async with connection() as client:
        question = "Tell me the capital of France."
        instance = await launch(client, "chat", "--max-tokens", "32", "--user", question)
        pieces = []
        while True:
            event, text = await soon(instance.recv())
            if event != Event.Message:
                break
            pieces.append(text)
        assert event == Event.Completed, (event, text)
        assert "".join(pieces) == text and "Paris" in text and len(pieces) > 3, (pieces, text)


async def tokens_of_pyseto():
    import pyseto

    secret = pyseto.Key.from_paserk(Path(os.environ["TARTLET_KEY"]).read_text().strip())
    public = pyseto.Key.from_paserk(Path(os.environ["TARTLET_KEY"] + ".pub").read_text().strip())
    claims = pyseto.decode(public, TOKEN, deserializer=json).payload
    assert claims["sub"] == "tester" and claims["role"] == "user" and "exp" in claims, claims

    def signed(**claims):
        return pyseto.encode(secret, payload=claims, serializer=json).decode()

    async with PieClient(URL) as client:
        for wrong in [
            signed(sub="py", role="user"),  # exp is required
            signed(sub="py", role="user", exp="2001-01-01T00:00:00Z"),
            signed(sub="py", role="user", exp="2999-01-01T00:00:00Z", nbf="2998-01-01T00:00:00Z"),
            signed(sub="py", role="king", exp="2999-01-01T00:00:00Z"),
            signed(role="user", exp="2999-01-01T00:00:00Z"),
            signed(sub="py", role="user", exp=32503680000),  # RFC 3339 text, not a number
        ]:
            assert await soon(client.authenticate(wrong)) == (False, "Invalid token"), wrong
        good = signed(sub="py", role="user", exp="2999-01-01T00:00:00+00:00")
        assert await soon(client.authenticate(good)) == (True, "py")
        instance = await launch(client, "echo", "--return", "hello")
        await expect(instance, Event.Completed, "hello")


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
