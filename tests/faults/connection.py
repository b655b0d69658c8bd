"""To come."""


def scenarios():
    return []
