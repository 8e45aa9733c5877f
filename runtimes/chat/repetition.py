"""The end of an answer that only repeats itself, which is how base models often go on."""

SHORTEST, LONGEST = 20, 200
"""Characters of a passage that counts as repeated. A shorter one counts when several of it make up such a passage."""

TIMES = 3
WINDOW = LONGEST * TIMES


def repeats(text: str) -> bool:
    """Whether the text ends with the same passage three times in a row. Looks at its last `WINDOW` characters.

    A passage without a letter or digit does not count: rows of dashes and spaces are the form of tables and code.
    """
    for length in range(SHORTEST, min(LONGEST, len(text) // TIMES) + 1):
        passage = text[-length:]
        if text.endswith(passage * TIMES) and any(map(str.isalnum, passage)):
            return True
    return False
