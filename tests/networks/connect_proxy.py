"""A proxy that knows CONNECT alone: `python connect_proxy.py PORT`; it prints what it is asked."""

import asyncio
import sys

HEAD_CAP = 8192
BLOCK = 65_536


async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Carry bytes until the source ends."""
    try:
        while block := await source.read(BLOCK):
            target.write(block)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: its CONNECT line, then bytes both ways."""
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n")[0].decode("ascii").split()
    sys.stdout.write(f"{method} {target}\n")
    sys.stdout.flush()
    if method != "CONNECT":
        writer.write(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n")
        writer.close()
        return
    host, _, port = target.rpartition(":")
    try:
        up_reader, up_writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
        writer.close()
        return
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer))


async def main() -> None:
    """Listen on every address."""
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]), limit=HEAD_CAP)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
