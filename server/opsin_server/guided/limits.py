"""How large a grammar may be, and how much work: what compiles it in the engine is a thread beside the steps, and what
computes a token's mask stands in a step. With these no mask takes longer than some 60 ms [measured on hostile
grammars], and most take less than a tenth of one."""

from __future__ import annotations

from llguidance import LLParserLimits

MAX_REGEX = 2**13  # characters
MAX_GRAMMAR = 2**15
MAX_SCHEMA = 2**17  # as JSON; also of all choices together
MAX_DEPTH = 64  # lists and objects within each other in a schema

# No token is forced: whatever spells an allowed text may be drawn, and the engine need not know how a text is encoded.
HEAD = '%llguidance {"no_forcing": true}\n'


def parser_limits() -> LLParserLimits:
    """The same where a grammar is checked and where it is used."""
    return LLParserLimits(
        max_items_in_row=4000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=30_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )
