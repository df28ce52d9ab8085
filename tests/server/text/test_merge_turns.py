from functools import partial

import pytest

from opsin_server.errors import BadRequest
from opsin_server.text.conversation import Message, TextPart
from opsin_server.text.merge_turns import fold_system, merge_turns, one_text


def flat(messages):
    shown = [[p.text if isinstance(p, TextPart) else p for p in message.parts] for message in messages]
    return [(message.role, *parts) for message, parts in zip(messages, shown, strict=True)]


def test_system_text_goes_in_front_of_the_first_user_turn(tools):
    say, image = tools.say, tools.an_image()
    messages = [
        say("system", "S"),
        say("assistant", "A"),
        say("system", "T"),
        say("user", "U", image),
        say("user", "V"),
    ]
    assert flat(fold_system(messages)) == [("assistant", "A"), ("user", "S\n\nT\n\nU", image), ("user", "V")]
    assert flat(fold_system([say("system", "S"), say("user", image, "U")])) == [("user", "S\n\n", image, "U")]
    assert flat(fold_system([say("system", ""), say("user", "U")])) == [("user", "", "U")]


def test_system_text_without_a_user_turn_is_refused(tools):
    with pytest.raises(BadRequest, match="no system message") as caught:
        fold_system([tools.say("system", "S"), tools.say("assistant", "A")])
    assert caught.value.param == "messages"


def test_turns_of_one_role_are_merged(tools):
    say, image = tools.say, tools.an_image()
    messages = [say("user", "A"), say("user", image, "B"), say("user", "C"), say("assistant", "D"), say("user", image)]
    merged = flat(merge_turns(messages))
    assert merged == [("user", "A\n\n", image, "B\n\nC"), ("assistant", "D"), ("user", image)]


def test_thoughts_of_merged_turns_are_merged():
    def thinks(thought):
        return Message("assistant", (TextPart("a"),), thought)

    user = Message("user", (TextPart("u"),))
    merged = merge_turns([user, thinks("one"), thinks(None), thinks("two"), user, thinks(None)])
    assert [message.reasoning for message in merged] == [None, "one\n\ntwo", None, None]


def test_texts_in_one_part(tools):
    image = tools.an_image()
    text, part = partial(TextPart), one_text
    assert part((text("a"), image, text("b"))) == (text("ab"), image)
    assert part((image, text("a"), image, text("b"), text("c"))) == (image, text("abc"), image)
    assert part((image, text("a"))) == (image, text("a"))
