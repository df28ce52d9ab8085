"""What a string of each `format` may be: what Python's `datetime`, pydantic and jsonschema read, and never without an
end. (llguidance knows the same names; its patterns are wider, and in some a model may go on for ever.)"""

from __future__ import annotations

_DAYS_OF_31 = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_DAYS_OF_30 = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DAYS_OF_28 = "02-(?:0[1-9]|1[0-9]|2[0-8])"
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"  # of the years of a century, and of centuries
_LEAP_DAY = f"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29"
_DATE = f"(?:{_YEAR}-(?:{_DAYS_OF_31}|{_DAYS_OF_30}|{_DAYS_OF_28})|{_LEAP_DAY})"
_HOUR, _SIXTY = "(?:[01][0-9]|2[0-3])", "[0-5][0-9]"
_TIME = rf"{_HOUR}:{_SIXTY}:{_SIXTY}(?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR}:{_SIXTY})"

_COUNT = "[0-9]{1,6}"
_IN_DAY = f"T(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"
_IN_DAYS = f"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_DURATION = f"P(?:{_IN_DAYS}(?:{_IN_DAY})?|{_IN_DAY}|{_COUNT}W)"

_LABEL = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+[A-Za-z]+"
_EMAIL_LENGTHS = r"[^@]{1,64}@(?:[^.]{1,40}\.){1,4}[^.]{2,24}"  # together 254, which is the most
_HOSTNAME_LENGTHS = r"[^.]{1,63}(?:\.[^.]{1,63}){0,7}"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"


def _groups(most: int) -> str:
    return f"(?:[0-9A-Fa-f]{{1,4}}(?::[0-9A-Fa-f]{{1,4}}){{0,{most - 1}}})?" if most else ""


_SHORT_IPV6 = "|".join(f"{_groups(before)}::{_groups(7 - before)}" for before in range(8))
_IPV6 = f"(?:[0-9A-Fa-f]{{1,4}}(?::[0-9A-Fa-f]{{1,4}}){{7}}|{_SHORT_IPV6})"
_UUID = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"

_DOMAIN = (
    rf"(?:{_LABEL}\.)*[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*"  # (behind the last dot a digit would begin an address)
)
_HOST = rf"(?:{_DOMAIN}|{_IPV4}|\[{_IPV6}\])"
_PORT = "(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3})"
_CHARACTER = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_PATH, _REST = f"(?:/{_CHARACTER}*)*", rf"(?:\?(?:{_CHARACTER}|[/?])*)?(?:#(?:{_CHARACTER}|[/?])*)?"
_ADDRESS = f"[A-Za-z][A-Za-z0-9+.-]{{0,15}}://(?:[A-Za-z0-9._~-]+@)?{_HOST}(?::{_PORT})?"
_BARE = f"[A-EGI-VX-Za-egi-vx-z][A-Za-z0-9+.-]{{0,15}}:{_CHARACTER}+"  # (http, https, ftp, ws and file have a host)
_URI = f"(?:(?:{_ADDRESS}|file://){_PATH}|{_BARE}{_PATH}){_REST}"

_KINDS = {
    "date": (_DATE,),
    "date-time": (f"{_DATE}T{_TIME}",),
    "time": (_TIME,),
    "duration": (_DURATION,),
    "email": (_EMAIL, _EMAIL_LENGTHS),
    "hostname": (rf"{_LABEL}(?:\.{_LABEL})*", _HOSTNAME_LENGTHS, ".{1,253}"),
    "ipv4": (_IPV4,),
    "ipv6": (_IPV6,),
    "uri": (_URI, ".{1,1024}"),
    "uuid": (_UUID,),
}
PATTERNS = {name: tuple(f"^(?:{pattern})$" for pattern in patterns) for name, patterns in _KINDS.items()}
"""By the format's name: a string matches all of them."""
