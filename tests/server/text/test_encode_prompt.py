"""Pictures in prompts: places, positions, digests, and the part of the request that an error names."""

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from opsin_plugins.spec import ImageBudget
from opsin_server.errors import BadRequest
from opsin_server.text.conversation import ImagePart, Message, TextPart, ToolCall, VideoPart, VideoWish, image_parts
from opsin_server.text.encode_prompt import PromptEncoder
from opsin_server.text.image_digest import image_digest


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_stand_where_the_template_puts_them(cases, encoders, tools):
    messages = [tools.say("user", "a", tools.an_image(), tools.an_image()), tools.say("user", tools.an_image())]
    images = [picture(48, 64), picture(96, 64), picture(64, 64)]
    prompt = encoders["mini"].encode(messages, images)
    token = cases["mini"].spec.image_token
    assert prompt.ids.dtype == prompt.positions.dtype == np.int32
    assert prompt.positions.shape == (3, len(prompt.ids))
    assert [span.item for span in prompt.spans] == [0, 1, 2]
    assert [item.grid for item in prompt.items] == [(1, 6, 8), (1, 12, 8), (1, 8, 8)]
    for span, item in zip(prompt.spans, prompt.items, strict=True):
        assert span.length == item.tokens == item.grid[1] * item.grid[2] // 4
        assert (prompt.ids[span.start : span.start + span.length] == token).all()
    assert (prompt.ids == token).sum() == sum(item.tokens for item in prompt.items)
    assert prompt.positions[:, -1].max() == len(prompt.ids) - 1 + prompt.delta


def test_text_alone(encoders, tools):
    prompt = encoders["metaspace"].encode([tools.say("user", "a")], [])
    assert prompt.positions.tolist() == [list(range(len(prompt.ids)))]
    assert (prompt.delta, prompt.spans, prompt.items) == (0, (), ())


def test_a_budget_counts_for_its_own_image(encoders):
    parts = (ImagePart("", ImageBudget(48 * 48), "p0"), ImagePart("", ImageBudget(), "p1"))
    prompt = encoders["mini"].encode([Message("user", parts)], [picture(96, 96), picture(96, 96)])
    assert [item.grid for item in prompt.items] == [(1, 6, 6), (1, 12, 12)]
    assert prompt.items[0].digest != prompt.items[1].digest


def test_a_number_of_pixels_that_a_family_with_one_size_cannot_keep_is_refused(encoders):
    asked = ImagePart("", ImageBudget(1000), "messages[0].content[0].image_url", demanded=True)
    with pytest.raises(BadRequest, match="max_pixels: llava gives every image one size") as refusal:
        encoders["metaspace"].check([Message("user", (asked,))])
    assert refusal.value.param == "messages[0].content[0].image_url"
    encoders["metaspace"].check([Message("user", (replace(asked, demanded=False),))])  # `detail` has no effect
    encoders["mini"].check([Message("user", (asked,))])


def test_digests_tell_apart_what_can_differ(cases):
    spec, image = cases["mini"].spec, picture()
    assert len(image_digest(image, spec, ImageBudget())) == 32
    assert image_digest(image, spec, ImageBudget()) == image_digest(image.copy(), spec, ImageBudget())
    assert image_digest(image[:, ::-1], spec, ImageBudget()) == image_digest(image[:, ::-1].copy(), spec, ImageBudget())
    others = [
        (picture(seed=1), spec, ImageBudget()),
        (image.reshape(64, 48, 3), spec, ImageBudget()),  # the same bytes
        (image, spec, ImageBudget(4000)),
        (image, replace(spec, image=replace(spec.image, resample=2)), ImageBudget()),
        (image, replace(spec, family="other"), ImageBudget()),
        (image, replace(spec, encoder="other"), ImageBudget()),
    ]
    digests = {image_digest(*other) for other in others} | {image_digest(image, spec, ImageBudget())}
    assert len(digests) == len(others) + 1


def test_a_picture_that_the_model_cannot_take_is_named(encoders):
    parts = (
        ImagePart("", ImageBudget(), "messages[0].content[0]"),
        ImagePart("", ImageBudget(), "messages[0].content[1]"),
    )
    with pytest.raises(BadRequest, match="ratio") as caught:
        encoders["mini"].encode([Message("user", parts)], [picture(), picture(2, 900)])
    assert caught.value.param == "messages[0].content[1]"


def test_placeholders_that_the_template_leaves_out_are_an_error(cases, tools):
    """It shows the images of the first turn only."""
    first = "{% if p.type == 'text' %}{{ p.text }}{% elif loop_first %}<|image_pad|>{% endif %}"
    parts = "{% set loop_first = loop.first %}{% for p in m.content %}" + first + "{% endfor %}"
    encoder = cases["mini"].with_template("{% for m in messages %}" + parts + "{% endfor %}").encoder
    messages = [tools.say("user", tools.an_image(), "a"), tools.say("user", tools.an_image())]
    with pytest.raises(BadRequest, match="1 image placeholders for 2 images"):
        encoder.encode(messages, [picture(), picture()])


def test_what_the_template_leaves_out_of_a_tools_message_is_named_before_it_is_fetched(cases):
    case = cases["byte-level"]
    video = "{% elif m.role == 'user' %}<|im|>{% endif %}"
    part = "{% if p.type == 'image' %}<|image_pad|>{% elif p.type == 'text' %}{{ p.text }}" + video
    turn = "{% for p in m.content %}" + part + "{% endfor %}"
    files = case.with_template("{{ tools | tojson }}{% for m in messages %}" + turn + "{% endfor %}").files
    video_token = case.encoder.tokenizer.token_id("<|im|>")
    encoder = PromptEncoder(files, case.architecture, replace(case.spec, video_token=video_token))

    def result(part: ImagePart | VideoPart) -> list[Message]:
        called = Message("assistant", (TextPart(""),), tool_calls=(ToolCall("call_1", "look", "{}"),))
        return [
            Message("user", (TextPart("a"),)),
            called,
            Message("tool", (TextPart("b"), part), tool_call_id="call_1"),
        ]

    video = VideoPart("", VideoWish(), "messages[2].content[1].video_url")
    with pytest.raises(BadRequest, match="leaves out videos in a tool's message: send them in a user's") as caught:
        encoder.check(result(video))
    assert (caught.value.param, caught.value.code) == (video.param, "unsupported_video")
    encoder.check([Message("user", (video,))])
    assert len(encoder.encode(result(ImagePart("", ImageBudget(), "")), [picture()]).spans) == 1


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content }}{% endfor %}", None])
def test_models_without_images_refuse_them(template, cases, tools):
    case = cases["mini"]
    if template is None:
        blind = {"vision": None, "projector": None, "image": None, "fusion": None, "encoder": None, "image_token": None}
        encoder = PromptEncoder(case.files, case.architecture, replace(case.spec, **blind))
    else:
        encoder = case.with_template(template).encoder
    assert not encoder.takes_images
    messages = [tools.say("user", "a", tools.an_image(1))]
    for refuse in (encoder.check, encoder.text_ids, lambda m: encoder.encode(m, [picture()])):
        with pytest.raises(BadRequest, match="takes text only") as caught:
            refuse(messages)
        assert caught.value.param == "messages[0].content[1].image_url"
    encoder.check([tools.say("user", "a")])
    assert encoder.text_ids([tools.say("user", "a")])


def test_tokens_outside_of_the_model_are_refused(cases, tools):
    case = cases["mini"]
    small = replace(case.spec, decoder=replace(case.spec.decoder, vocab=100))
    with pytest.raises(BadRequest, match="outside of the model's 100"):
        PromptEncoder(case.files, case.architecture, small).encode([tools.say("user", "circle")], [])


def test_image_parts_come_in_order():
    parts = [ImagePart(str(i), ImageBudget(), "") for i in range(3)]
    messages = [Message("user", (parts[0], TextPart("a"), parts[1])), Message("user", (parts[2],))]
    assert image_parts(messages) == parts


def test_threads_may_share_an_encoder(cases, tools):
    encoder = cases["byte-level"].encoder
    messages = [[tools.say("user", tools.an_image(), f"{i} <|im_end|> {'x' * i}")] for i in range(40)]
    expected = [encoder.text_ids(m) for m in messages]
    found: dict[int, list] = {}

    def work(n):
        found[n] = [encoder.text_ids(m) for m in messages]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [expected] * 4


def test_the_module_is_light():
    code = "import sys, opsin_server.text.encode_prompt; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
