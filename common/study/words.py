"""Six words for comparing a plan's hash by voice."""

WORDS = (
    "amber anchor apple arrow autumn badge bamboo basin beacon birch bishop bloom bottle "
    "bridge bronze butter cabin camel candle canyon carbon castle cedar chalk cherry circle "
    "clover cobalt copper coral cotton crane crystal dahlia desert dolphin donkey dragon "
    "eagle ember engine falcon feather fennel ferry flint forest fossil garden garnet ginger "
    "glacier goblet granite harbor hazel heron hollow honey horizon ivory island jasmine "
    "juniper"
).split()
WORD_BITS = 6


def fingerprint_words(plan_hash: str) -> str:
    """Return six words for reading a plan's hash aloud: its first 36 bits."""
    bits = int(plan_hash[:9], 16)
    words = []
    for place in range(6):
        words.append(WORDS[(bits >> (WORD_BITS * place)) % len(WORDS)])
    return " ".join(words)
