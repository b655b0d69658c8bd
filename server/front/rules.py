"""What a site may ask of the server: the one declared rule set of every door before the SuperLink.

The socket `fleet.sock`, the embedded front and nginx's configuration are made from these constants.
"""

from __future__ import annotations

from common.wire import between, renewal

KIB = 1 << 10
MIB = 1 << 20

# Flower's calls of a site and the largest body of each, in bytes. An object is sent in chunks of
# 5 MiB. These alone are passed on to the SuperLink.
FLEET_CALLS: dict[str, int] = {
    "/v1/fleet/activate-node": 4 * KIB,
    "/v1/fleet/send-node-heartbeat": 4 * KIB,
    "/v1/fleet/pull-messages": 4 * KIB,
    "/v1/fleet/get-run": 4 * KIB,
    "/v1/fleet/pull-object": 4 * KIB,
    "/v1/fleet/confirm-message-received": 4 * KIB,
    "/v1/fleet/push-messages": 16 * KIB,
    "/v1/fleet/push-object": 6 * MIB,
}
# A site renews its certificate: the front answers this call itself.
RENEW = renewal.PATH
CALLS: dict[str, int] = {**FLEET_CALLS, RENEW: renewal.REQUEST_CAP_BYTES}
PULL_MESSAGES = "/v1/fleet/pull-messages"
PULL_OBJECT = "/v1/fleet/pull-object"
PUSH_MESSAGES = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"

# What one reply may hold: the largest update (common/privacy/boundary.py) and what Flower adds.
CHUNK_BYTES = 5 * MIB
REPLY_BYTES = 512 * MIB
REPLY_EXTRA_BYTES = 16 * MIB
REPLY_OBJECTS = REPLY_BYTES // CHUNK_BYTES + 16
# A site may push so much until its next instruction: its reply, and all of it once more.
PUSHED_BYTES = 2 * (REPLY_BYTES + REPLY_EXTRA_BYTES)
# Each byte of an announcement of objects costs the SuperLink's database about so many.
ANNOUNCED_FACTOR = 16

MEDIA_TYPE = b"application/protobuf"
MEDIA_TYPES = {RENEW: renewal.MEDIA_TYPE.encode()}  # of the calls that are not Flower's
KEY_HEADER = b"flwr-public-key"
# What is passed on to the SuperLink, and what comes back.
REQUEST_HEADERS = (
    b"content-type",
    b"accept",
    KEY_HEADER,
    b"flwr-timestamp",
    b"flwr-signature",
    b"flwr-package-name",
    b"flwr-package-version",
    b"flwr-component-name",
)
ANSWER_HEADERS = (b"content-type",)
# A request may hold each of these at most once, and none of those.
SINGLE_HEADERS = (b"content-length", b"content-type", KEY_HEADER)
REFUSED_HEADERS = (b"transfer-encoding", b"expect", b"upgrade", b"content-encoding")

TAKEN = 200
# Answers of a refusal; their bodies are empty.
NO_CERTIFICATE = 400
BAD_REQUEST = 400
NOT_ENROLLED = 403
UNKNOWN_PATH = 404
WRONG_METHOD = 405
TOO_LATE = 408
NO_LENGTH = 411
TOO_LARGE = 413
WRONG_TYPE = 415
TOO_MANY = 429
UPSTREAM = 502
BETWEEN = between.STATUS  # up, and no study is served
BETWEEN_HEADER = (between.HEADER.encode(), between.VALUE.encode())
# Every status with which the front itself refuses a request; between studies it refuses nothing.
REFUSALS = (
    BAD_REQUEST,
    NOT_ENROLLED,
    UNKNOWN_PATH,
    WRONG_METHOD,
    TOO_LATE,
    NO_LENGTH,
    TOO_LARGE,
    WRONG_TYPE,
    TOO_MANY,
    UPSTREAM,
)
OVER_QUOTA = "E-FRONT-QUOTA"  # beside 429 in the log: a site pushed more than its replies may hold

# Limits of one connection, one site, and all of them.
HEADER_CAP_BYTES = 16 * KIB
HELLO_S = 5.0  # from the connection to the whole first record of TLS
HANDSHAKE_S = 5.0
HEADER_S = 10.0  # from the connection, or the first byte, to the end of the header
REQUEST_S = 60.0
IDLE_S = 75
LINGER_S = 2.0
LINGER_BYTES = 8 * MIB
CONNECTIONS_EACH = 8
PIPELINED = 2  # requests that wait behind one that is not answered
CONNECTIONS_NAMELESS = 32  # of all peers without a certificate together
CONNECTIONS_ALL = 1024
HALF_OPEN = 1024
HANDSHAKES = 64
RATE_PER_S = 100
BURST = 400
RENEWALS_AT_ONCE = 4  # threads that check signatures
RENEWALS_PER_S = 1 / 30  # of one site: it asks again until somebody has signed
RENEWALS_BURST = 10
BODIES_BYTES = 96 * MIB  # of all requests that are being read
BODIES_EACH_BYTES = 24 * MIB  # of one site
SMALL_BYTES = 4 * KIB  # a body that needs no share
ANSWERS_BYTES = 96 * MIB  # of all objects that sites pull at once
ANSWERS_EACH_BYTES = 6 * MIB  # of one site, which pulls one after the other
CHUNK_ANSWER_BYTES = 6 * MIB  # of one object
ANSWER_S = 120.0  # an answer, from its first byte
PIECE_BYTES = 256 * KIB  # of an answer, sent at once
STALL_S = 15.0  # between two pieces of a body
