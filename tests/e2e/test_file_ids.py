"""Pictures by the ids of uploaded files, in chats and in training rows, through OpenAI's own SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from support.served import Served, wait_for
from support.talk import MINI, image_part, png, sample, text_part

QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with Served("--max-image-bytes", "200000") as served:
        yield served.client()
        served.close()


def upload(client: openai.OpenAI, picture: Image.Image | bytes, purpose: Any = "vision") -> str:
    data = picture if isinstance(picture, bytes) else png(picture)
    return client.files.create(file=("a.png", data), purpose=purpose).id


def ask(client: openai.OpenAI, part: dict[str, Any]) -> tuple[str | None, int]:
    said = client.chat.completions.create(
        model=MINI.name,
        temperature=0,
        max_tokens=16,
        messages=[{"role": "user", "content": [part, text_part(QUESTION)]}],  # type: ignore[list-item]
    )
    assert said.usage is not None
    return said.choices[0].message.content, said.usage.prompt_tokens


def test_a_picture_by_its_id_is_the_picture(client: openai.OpenAI) -> None:
    picture = sample("square_and_star.png")
    expected = ask(client, image_part(picture))
    assert expected[0] == "A blue square and an orange star."
    file_id, other = upload(client, picture), upload(client, picture, "user_data")
    for part in (
        {"type": "image_url", "image_url": {"file_id": file_id}},
        {"type": "image_url", "image_url": {"file_id": other, "detail": "auto"}},
        {"type": "file", "file": {"file_id": file_id, "filename": "a.png"}},
        {"type": "file", "file": {"file_data": image_part(picture)["image_url"]["url"]}},
        {"type": "input_image", "file_id": file_id},
    ):
        assert ask(client, part) == expected, part


def test_what_is_no_picture_of_this_server_is_refused(client: openai.OpenAI) -> None:
    picture = sample("square_and_star.png")
    gone = upload(client, picture)
    client.files.delete(gone)
    where = "messages[0].content[0]"
    for part, param, words in (
        ({"type": "image_url", "image_url": {"file_id": "file-none"}}, "image_url.file_id", "No such File object"),
        ({"type": "file", "file": {"file_id": gone}}, "file.file_id", "No such File object"),
        ({"type": "file", "file": {"file_id": upload(client, b"text")}}, "file.file_id", "of no known format"),
        (
            {"type": "file", "file": {"file_id": upload(client, picture, "fine-tune")}},
            "file.file_id",
            "has the purpose 'fine-tune'",
        ),
        ({"type": "file", "file": {"file_id": upload(client, bytes(300_000))}}, "file.file_id", "--max-image-bytes"),
        ({"type": "file", "file": {}}, "file.file_id", "Missing"),
        ({"type": "file", "file": {"file_data": "aGk="}}, "file.file_data", "data: URL"),
        ({"type": "file", "file": {"file_id": "a", "file_data": "data:"}}, "file.file_data", "not both"),
        ({"type": "image_url", "image_url": {}}, "image_url.url", "Missing"),
        ({"type": "image_url", "image_url": {"url": "data:", "file_id": "a"}}, "image_url.file_id", "not both"),
        ({"type": "image_url", "image_url": {"url": gone}}, "image_url", "must be a data: URL"),
        ({"type": "input_image", "file_id": "a", "image_url": "data:"}, "file_id", "one of"),
        ({"type": "text", "text": "a", "file_id": "a"}, "file_id", "must not have"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, part)  # type: ignore[arg-type]
        assert error.value.param == f"{where}.{param}", part
        assert words in error.value.message, part


def job(client: openai.OpenAI, ids: list[str]) -> Any:
    rows = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"file_id": one}}, text_part("Which?")],
                },
                {"role": "assistant", "content": "7"},
            ]
        }
        for one in ids
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    made = client.fine_tuning.jobs.create(
        model=MINI.name,
        training_file=client.files.create(file=("a.jsonl", data), purpose="fine-tune").id,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
    )

    def over() -> bool:
        return client.fine_tuning.jobs.retrieve(made.id).status in ("succeeded", "failed")

    wait_for(over, 90, "the job did not end")
    return client.fine_tuning.jobs.retrieve(made.id)


def test_rows_may_name_pictures_by_their_ids(client: openai.OpenAI) -> None:
    ids = [upload(client, Image.new("RGB", (56, 56), (20 * n, 0, 90))) for n in range(10)]
    done = job(client, ids)
    assert done.status == "succeeded", done.error


def test_a_row_with_a_picture_that_is_not_there_is_told_by_its_line(client: openai.OpenAI) -> None:
    ids = [upload(client, Image.new("RGB", (56, 56), (20 * n, 0, 90))) for n in range(10)]
    client.files.delete(ids[6])
    failed = job(client, ids)
    assert failed.status == "failed"
    assert "line 7: messages[0].content[0].image_url.file_id: No such File object" in failed.error.message
