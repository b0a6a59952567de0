"""JSON over HTTP with a server that need not be honest: whole-request time limit, bounded bytes after decompression, no
redirects. A reply comes back whole and small or not at all, whatever was sent; who asks decides what it means and whether to
ask again.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from trajscore.errors import UsageError, first_line

_PIECE = 1 << 16
_LARGE = 1 << 18
_LARGE_AT_A_TIME = 8
_LARGE_BYTES = 16 << 20
_ERROR_BYTES = 1 << 16
_KEPT_HEADERS = ("retry-after", "location")


class NoReplyError(Exception):
    """No complete HTTP reply came: a time limit, a refused or lost connection, or something that is not HTTP."""


class TimeLimitError(NoReplyError):
    """The time limit came before a complete reply."""


class UnusableReplyError(Exception):
    """A reply of status 200 whose body is too large or is not encoded as its header says."""


@dataclass(frozen=True)
class HttpReply:
    """A whole reply.

    Attributes:
        status: of HTTP.
        body: bytes, decompressed. Of another status than 200 only the beginning, empty where it cannot be decompressed.
        retry_after: the header's text; None when there is none.
        location: where a redirect points to; empty when there is none.
    """

    status: int
    body: bytes
    retry_after: str | None
    location: str


class JsonServer:
    """Exchanges JSON with an OpenAI-compatible server. One object per event loop, closed by leaving its block.

    Args:
        base_url: the URL up to `/v1`.
        key: sent as a bearer token; empty for none.
        seconds: time limit of one request, from its first byte to the reply's last.
        most_bytes: a longer body of status 200 is unusable.
        connections: at a time.

    Raises:
        UsageError: the URL or a proxy's URL is not valid.
    """

    def __init__(self, base_url: str, key: str, seconds: float, most_bytes: int, connections: int) -> None:
        self._url = base_url
        self._headers: dict[str, Any] = {} if key else {"Authorization": openai.Omit()}
        try:
            transport = _BoundedTransport(seconds, most_bytes, connections, _proxy(base_url))
            self._openai = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key or "none",
                max_retries=0,
                timeout=None,
                http_client=httpx2.AsyncClient(transport=transport, timeout=None, follow_redirects=False),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise UsageError(f"{base_url}: not a valid URL ({first_line(error)}).") from error

    async def get(self, path: str) -> HttpReply:
        """Ask for what is at a path; raises what `post` does."""
        return await self._exchange(self._openai.get(path, cast_to=httpx2.Response, options={"headers": self._headers}))

    async def post(self, path: str, body: Mapping[str, Any]) -> HttpReply:
        """Send a body, and read the reply.

        Raises:
            NoReplyError: no complete reply came.
            UnusableReplyError: one of status 200 came, whose body cannot be used.
            UsageError: the server's certificate is not trusted, or the URL is not valid.
        """
        return await self._exchange(
            self._openai.post(path, cast_to=httpx2.Response, body=dict(body), options={"headers": self._headers})
        )

    async def _exchange(self, request: Awaitable[httpx2.Response]) -> HttpReply:
        try:
            response = await request
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            raise self._failure(error.__cause__ or error) from error
        except httpx2.InvalidURL as error:
            raise UsageError(f"{self._url}: not a valid URL ({first_line(error)}).") from error
        return HttpReply(
            status=response.status_code,
            body=response.content,
            retry_after=response.headers.get("retry-after"),
            location=response.headers.get("location", ""),
        )

    def _failure(self, error: BaseException) -> Exception:
        if isinstance(error, _UnusableBody):
            return UnusableReplyError(str(error))
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return UsageError(
                    f"{self._url}: its certificate is not trusted ({cause.verify_message}).",
                    "Check the URL. For a certificate authority of your own, set SSL_CERT_FILE to its file.",
                )
        kind = TimeLimitError if isinstance(error, _TimeLimit) else NoReplyError
        return kind(f"{type(error).__name__.lstrip('_')}: {first_line(error)}")

    async def __aenter__(self) -> JsonServer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._openai.close()


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """What a Retry-After header asks to wait, from seconds or a date; None where there is no header or it is neither.

    Args:
        value: the header.
        now: seconds since the epoch.

    >>> retry_after_seconds("120", 0.0), retry_after_seconds("Thu, 01 Jan 1970 00:01:00 GMT", 20.0)
    (120.0, 40.0)
    >>> retry_after_seconds("soon", 0.0), retry_after_seconds("-3", 0.0), retry_after_seconds("9" * 400, 0.0)
    (None, None, inf)
    """
    text = "" if value is None else value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(parts.netloc):
        return None
    return named if "://" in named else f"http://{named}"


class _TimeLimit(httpx2.ReadTimeout):
    pass


class _UnusableBody(httpx2.TransportError):
    def __init__(self, problem: str, beginning: bytes = b"") -> None:
        super().__init__(problem)
        self.beginning = beginning


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """Reads every reply itself, so that the client above sees a short body of plain bytes and two headers at most."""

    def __init__(self, seconds: float, most_bytes: int, connections: int, proxy: str | None) -> None:
        self._seconds = seconds
        self._most_bytes = most_bytes
        try:
            self._inner = httpx2.AsyncHTTPTransport(
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections), proxy=proxy
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            # Its text may hold the proxy's password.
            raise UsageError(
                "the proxy that the environment names cannot be used.",
                "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY hold URLs such as http://host:3128; NO_PROXY the hosts without one.",
            ) from error
        # Many large bodies at a time would be large memory, however small each is.
        self._large = asyncio.Semaphore(max(1, min(_LARGE_AT_A_TIME, _LARGE_BYTES // most_bytes)))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        try:
            async with asyncio.timeout(self._seconds):
                return await self._exchange(request)
        except TimeoutError:
            raise _TimeLimit(f"no complete reply within {self._seconds:g} s", request=request) from None
        except httpx2.TransportError:
            raise
        except Exception as error:  # what a library makes of bytes that nobody foresaw
            raise httpx2.RemoteProtocolError(f"{type(error).__name__}: {first_line(error)}", request=request) from error

    async def _exchange(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        try:
            body = await self._body(response)
        finally:
            await response.aclose()
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    async def _body(self, response: httpx2.Response) -> bytes:
        if response.status_code == 200:
            return await self._read(response, self._most_bytes)
        try:
            return await self._read(response, _ERROR_BYTES)
        except _UnusableBody as error:
            return error.beginning

    async def _read(self, response: httpx2.Response, most: int) -> bytes:
        """The body, decompressed as it comes.

        Raises:
            _UnusableBody: it is longer than `most`, or not what its header says.
        """
        pieces = _decoder(response.headers.get("content-encoding", ""))
        data, raw, large = bytearray(), 0, False
        try:
            async for block in response.aiter_raw():
                raw += len(block)
                for piece in pieces(block):
                    data += piece
                    if max(raw, len(data)) > most:
                        beginning = bytes(data[:_ERROR_BYTES])
                        data.clear()  # the error's traceback would hold it until somebody collects garbage
                        raise _UnusableBody(f"the body is longer than {most:,} bytes", beginning)
                    if len(data) > _LARGE and not large:
                        await self._large.acquire()
                        large = True
            for piece in pieces(None):
                data += piece
        finally:
            if large:
                self._large.release()
        return bytes(data)

    async def aclose(self) -> None:
        await self._inner.aclose()


_Pieces = Callable[[bytes | None], Iterable[bytes]]
"""Decodes a block, or with None what is left at the end, piece by piece."""


def _decoder(encoding: str) -> _Pieces:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda block: () if block is None else (block,)
    if name in ("gzip", "x-gzip", "deflate"):
        return _Inflate(name).pieces
    raise _UnusableBody(f"Content-Encoding is {encoding[:40]!r}, and none was asked for")


class _Inflate:
    """gzip or zlib, 64 KiB at a time: one block of a bomb would otherwise fill the memory before anybody counts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def pieces(self, block: bytes | None) -> Iterator[bytes]:
        try:
            if block is None and not self._stream.eof:
                raise zlib.error("it ends too early")
            while block is not None and not self._stream.eof:
                piece = self._stream.decompress(block, _PIECE)
                yield piece
                block = self._stream.unconsumed_tail
                if not block and len(piece) < _PIECE:
                    break
        except zlib.error as error:
            raise _UnusableBody(f"Content-Encoding is {self._name}, and the body is not ({error})") from error
