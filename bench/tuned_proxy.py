"""The fastest plain proxy that aiohttp's server and client make together, to compare with; it does nothing else.

No key, no limit, no ledger; no access log, no cookies, no headers of its own, nothing unpacked, no limit of
connections, no timeouts.

    python -m bench.tuned_proxy PORT PROVIDER
"""

import asyncio
import signal
import sys

import aiohttp
from aiohttp import web

FROM_CLIENT = ("content-type", "accept", "user-agent", "anthropic-version", "x-api-key")
TO_CLIENT = ("content-type", "content-length", "cache-control", "request-id")
OWN_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


async def serve(port: int, provider: str) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with aiohttp.ClientSession(
        f"http://{provider}",
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        skip_auto_headers=OWN_HEADERS,
        auto_decompress=False,
    ) as session:

        async def relay(request: web.BaseRequest) -> web.StreamResponse:
            headers = {name: request.headers[name] for name in FROM_CLIENT if name in request.headers}
            async with session.post("/v1/messages", headers=headers, data=await request.read()) as answer:
                response = web.StreamResponse(status=answer.status)
                for name in TO_CLIENT:
                    if name in answer.headers:
                        response.headers[name] = answer.headers[name]
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            return response

        runner = web.ServerRunner(web.Server(relay, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
