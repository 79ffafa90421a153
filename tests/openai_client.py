"""The unmodified `openai` client of PyPI against `tartlet serve --openai`: one check a function.

usage: openai_client.py CHECK, with TARTLET_OPENAI (http://127.0.0.1:PORT/v1)
"""

import concurrent.futures
import http.client
import json
import os
import sys
from urllib.parse import urlsplit

import jsonschema
import openai
from pydantic import BaseModel

URL = os.environ["TARTLET_OPENAI"]
client = openai.OpenAI(base_url=URL, api_key="none is asked for", max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "Tell me the capital of France."}]


def chat(**options):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, **options})


def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def refused(kind, call, param=None, code=None):
    try:
        call()
    except kind as error:
        assert (error.param, error.code) == (param, code), (error.param, error.code, error.body)
        assert error.body["message"], error.body
        return error.body["message"]
    raise AssertionError(f"no {kind.__name__}")


def raw(method, path, body=None, headers={}):
    """Status, headers and body, without the client."""
    at = urlsplit(URL)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=120)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def models():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    refused(openai.NotFoundError, lambda: client.models.retrieve("gpt-9"), "model", "model_not_found")


def a_chat_streamed_and_whole():
    whole = chat()
    [choice] = whole.choices
    assert "Paris" in choice.message.content and choice.message.role == "assistant", whole
    assert choice.finish_reason == "stop" and whole.id.startswith("chatcmpl-"), whole
    usage = whole.usage
    assert usage.prompt_tokens > 5 and usage.completion_tokens > 2, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage

    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == choice.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 5 and all(chunk.id == chunks[0].id for chunk in chunks)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[0].id != whole.id, "each request has its own"
    assert not any(chunk.usage for chunk in chat(stream=True)), "nobody asked for it"

    # What was said before counts, in every form that a content has.
    parts = [{"type": "text", "text": "Tell me the "}, {"type": "text", "text": "capital of France."}]
    assert chat(messages=[{"role": "user", "content": parts}]).choices[0].message.content == choice.message.content
    longer = QUESTION + [
        {"role": "assistant", "content": choice.message.content},
        {"role": "user", "content": "And of Italy?"},
    ]
    longer = chat(messages=[{"role": "developer", "content": "You are terse."}, *longer], max_tokens=20)
    assert longer.choices[0].message.content and longer.usage.prompt_tokens > usage.prompt_tokens, longer


def a_text_goes_on():
    def text(**options):
        return client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, **options)

    whole = text(max_tokens=8)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 8, whole
    assert whole.id.startswith("cmpl-") and whole.object == "text_completion", whole
    streamed = "".join(chunk.choices[0].text for chunk in text(max_tokens=8, stream=True))
    assert streamed == whole.choices[0].text != ""
    assert text().usage.completion_tokens == 16, "as that API has it"
    assert client.completions.create(
        model=MODEL, prompt=["Once upon a time"], temperature=0, max_tokens=8
    ).choices == whole.choices


def stop_strings_end_it():
    text = chat(max_tokens=30).choices[0].message.content
    # In the middle of tokens and across them.
    for stop in (text[5:9], text[7:8], text[3:20]):
        before = text[: text.index(stop)]
        for stops in (stop, ["never said", stop]):
            ended = chat(max_tokens=30, stop=stops)
            assert ended.choices[0].message.content == before, (stop, ended)
            assert ended.choices[0].finish_reason == "stop"
            assert joined(chat(max_tokens=30, stop=stops, stream=True)) == before
    almost = text[-3:] + "\0"
    assert chat(max_tokens=30, stop=almost).choices[0].message.content == text, "held back, then shown"


def seeds_repeat_themselves():
    def drawn(seed, **options):
        return chat(temperature=1.2, seed=seed, max_tokens=24, **options).choices[0].message.content

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, top_p=0.9) == drawn(1, top_p=0.9)
    assert drawn(3, top_p=1e-6) == drawn(4, top_p=1e-6) == chat(max_tokens=24).choices[0].message.content
    assert chat(max_completion_tokens=5, max_tokens=9).usage.completion_tokens == 5


def mistakes_are_answered_in_its_form():
    bad = openai.BadRequestError
    refused(bad, lambda: chat(n=2), "n", "unsupported_parameter")
    refused(bad, lambda: chat(logprobs=True), "logprobs", "unsupported_parameter")
    refused(bad, lambda: chat(presence_penalty=0.5), "presence_penalty", "unsupported_parameter")
    refused(bad, lambda: chat(temperature=3), "temperature")
    refused(bad, lambda: chat(top_p=0), "top_p")
    refused(bad, lambda: chat(max_tokens=0), "max_tokens")
    refused(bad, lambda: chat(stop=["a", ""]), "stop")
    refused(bad, lambda: chat(messages=[]), "messages")
    refused(bad, lambda: chat(messages=[{"role": "cook", "content": "x"}]), "messages[0].role")
    refused(bad, lambda: chat(messages=[{"role": "user", "content": 3}]), "messages[0].content")
    refused(openai.NotFoundError, lambda: chat(model="gpt-9"), "model", "model_not_found")
    pattern = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "a"}}}
    assert "pattern" in refused(bad, lambda: chat(response_format=pattern), "response_format")
    assert chat(n=1, user="me", logit_bias={}, extra_body={"unheard_of": [1]}, max_tokens=2).choices

    for method, path, body, status in [
        ("POST", "/v1/chat/completions", "{", 400),
        ("POST", "/v1/chat/completions", "[]", 400),
        ("POST", "/v1/completions", '{"model": "' + MODEL + '"}', 400),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/models", "{}", 405),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/", None, 404),
        ("POST", "/v1/completions", '{"model": "' + "x" * (1 << 20) + '"}', 413),
    ]:
        got, headers, text = raw(method, path, body)
        assert got == status, (method, path, got, text)
        error = json.loads(text)["error"]
        assert error["type"] == "invalid_request_error" and error["message"], error
        assert status != 405 or headers["allow"] in ("GET", "POST"), headers


def what_the_context_does_not_hold_is_refused():
    """Of a server whose pages hold 256 tokens."""
    bad, long, code = openai.BadRequestError, "one two three " * 100, "context_length_exceeded"
    said = [{"role": "user", "content": long}]
    for options in ({}, {"stream": True}, {"max_tokens": 1}):
        told = refused(bad, lambda: chat(messages=said, **options), "messages", code)
        assert "holds 256 tokens" in told, told
    text = lambda **options: client.completions.create(model=MODEL, temperature=0, **options)
    refused(bad, lambda: text(prompt=long), "prompt", code)
    # The prompt alone fits, and what is asked for behind it does not.
    refused(bad, lambda: chat(max_tokens=250), "messages", code)
    refused(bad, lambda: text(prompt="one", max_tokens=256), "prompt", code)
    # Who asks for no number gets what is left.
    whole = chat(messages=[{"role": "user", "content": "Tell a very long story."}], temperature=1)
    assert whole.usage.total_tokens <= 256, whole
    whole = text(prompt="one two three " * 83)
    assert whole.usage.prompt_tokens < whole.usage.total_tokens <= 256, whole


def answers_follow_a_schema():
    class Person(BaseModel):
        name: str
        age: int
        hobbies: list[str]

    told = [{"role": "user", "content": "Anna is 31 and likes chess. Describe her as JSON."}]
    person = client.chat.completions.parse(model=MODEL, messages=told, response_format=Person, max_tokens=80, temperature=0)
    assert isinstance(person.choices[0].message.parsed, Person), person
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    for seed in range(4):
        format = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
        answer = joined(chat(response_format=format, temperature=1, seed=seed, max_tokens=30, stream=True))
        jsonschema.validate(json.loads(answer), schema)
    anything = chat(response_format={"type": "json_object"}, max_tokens=40, temperature=1)
    assert isinstance(json.loads(anything.choices[0].message.content), dict), anything


def thirty_two_at_once_all_finish():
    def ask(number):
        said = f"Count from {number} to {number + 5}."
        options = dict(messages=[{"role": "user", "content": said}], max_tokens=24)
        if number % 2:
            chunks = list(chat(stream=True, **options))
            return joined(chunks), chunks[-1].choices[0].finish_reason
        [choice] = chat(**options).choices
        return choice.message.content, choice.finish_reason

    alone = [ask(number) for number in range(3)]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    assert together[:3] == alone, "neighbours change nothing"
    assert len(together) == 32 and all(text and end in ("stop", "length") for text, end in together), together


def who_leaves_stops_it():
    """Opens eight long answers and leaves each after its first words."""
    for _ in range(8):
        with chat(stream=True, max_tokens=4000, temperature=1, messages=[{"role": "user", "content": "Tell a long story."}]) as stream:
            next(iter(stream))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
