"""Every numeric field of a request at and beyond its bounds, beside streams whose answers may not change by a bit.

python bench/boundaries.py                      all fields, all values: the table of docs/benchmarks; a minute
python bench/boundaries.py --only temperature   fields with this in their name, printed
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import models
import report
from boundary_answers import ANSWERED, REFUSED, Findings, try_fields
from boundary_bodies import Bodies
from boundary_fields import numeric_fields
from neighbours import Client, Neighbours
from processes import Threads
from systems import Opsin
from tables import table

PICTURE = Path(__file__).parents[1] / "server/opsin_server/models/samples/red_circle.png"
TITLES = ["operation", "field", "answered", "400 that names the field", "otherwise"]
ABOUT = """`python bench/boundaries.py`; opsin-mini on one thread. What each numeric field of a request does with values
around its bounds and with odd ones. A body that the OpenAPI document allows is answered, equal numbers with equal
answers, and null as a field that is left out; any other is a 400 that names the field. Otherwise: the code with which
a value is refused, by a sentence that names the field, though the document allows it: something else in the request, a
limit of the server or the model does not. (opsin-mini takes no videos: what is of one is tried up to that refusal.)"""


def prepare(client: Client) -> Bodies:
    """Asks which model it is, and uploads what jobs and batches need."""
    model = json.loads(client.send("GET", "/v1/models")[1])["data"][0]["id"]
    said = [{"role": "user", "content": "Hello there!"}]
    row = {"messages": [*said, {"role": "assistant", "content": "Hello."}]}
    body = {"model": model, "messages": said, "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    files = [_upload(client, "fine-tune", [row] * 10), _upload(client, "batch", [line])]
    return Bodies(model, f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}", *files)


def _upload(client: Client, purpose: str, rows: Sequence[dict[str, Any]]) -> str:
    data = "".join(json.dumps(row) + "\n" for row in rows)
    form = f'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--x\r\n'
    form += f'content-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n{data}\r\n--x--\r\n'
    answer = client.send("POST", "/v1/files", form.encode(), "multipart/form-data; boundary=x")[1]
    return str(json.loads(answer)["id"])


def summary(found: Findings, neighbours: Neighbours) -> str:
    tried = f"{len(found.outcomes)} fields, {found.requests:,} requests: {len(found.wrong)} faults."
    beside = f"Meanwhile four neighbours (two greedy, two drawn by a seed) had {neighbours.answers:,} answers"
    return f"{tried} {beside}, {len(neighbours.different)} with another text or log-probability than alone."


def rows(found: Findings) -> list[list[str]]:
    made = []
    for one, outcomes in found.outcomes.items():
        texts = defaultdict(list)
        for text, outcome in outcomes.items():
            texts[outcome].append(f"`{text}`")
        answered, refused = (" ".join(texts.pop(outcome, [])) for outcome in (ANSWERED, REFUSED))
        others = "; ".join(f"{' '.join(values)}: {outcome}" for outcome, values in texts.items())
        made.append([one.operation, f"`{one.name}`", answered, refused, others])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of a field's name; nothing is written")
    parser.add_argument("--out", type=Path, help="a .md")
    given = parser.parse_args()
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        opsin = Opsin(models.prepare("mini", Path(folder)), Threads(1, "passive"), Path(folder))
        opsin.wait_ready()
        client = Client(opsin.port)
        fields = numeric_fields(json.loads(client.send("GET", "/openapi.json")[1]))
        bodies = prepare(client)
        with Neighbours(opsin.port, bodies.model) as neighbours:
            found = try_fields(client, [one for one in fields if given.only in one.name], bodies)
        ready = client.send("GET", "/health/ready")[0] == 200
        opsin.child.stop()
    ends = [] if ready else ["The server is not ready afterwards."]
    said = "\n\n".join(
        [summary(found, neighbours), *found.wrong, *neighbours.different, *ends, table(TITLES, rows(found))]
    )
    if given.only:
        print(said)
    else:
        report.write_page("boundaries", "Numbers at their bounds", began, ABOUT, said, given.out)


if __name__ == "__main__":
    main()
