"""The clients: `pastille.Client` waits, `pastille.AsyncClient` is awaited; both do the same steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

import pastille.client.flows as flows
from pastille.client.flows import Standing
from pastille.client.http import async_http, failure, got_of, request_of, sync_http
from pastille.client.payload import Given
from pastille.client.prediction import Prediction
from pastille.client.steps import Asked, Came, Flow, Patience, Pause

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")


class Client:
    """Asks one server. Safe to use from several threads; keeps its connections.

    Args:
        url: Where the server listens, e.g. ``"http://127.0.0.1:8080"``.
        token: Sent with every request, where the server wants one.
        model: Name of the model; None: the only one, or for files the server's default.
        timeout_s: That connecting, sending or waiting for an answer may take, each.
        retries: How often a request is sent again where the server is busy and says when to come back
            (429 or 503 with ``Retry-After``), or could not be connected to. Never after any other failure.

    Raises:
        UsageError: The address is none.

    Example:
        >>> with Client("http://127.0.0.1:8080") as client:                  # doctest: +SKIP
        ...     print(client.predict("scan.png").label)
        glioma
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        model: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
    ) -> None:
        self._http = sync_http(url, token, timeout_s)
        self._known = Standing(model=model, patience=Patience(retries=retries))

    def predict(
        self,
        given: Given | np.ndarray,
        *,
        media_type: str | None = None,
        subject: str | None = None,
    ) -> Prediction:
        """Ask about a file, its bytes, a row, or arrays.

        Args:
            given: A file's path or its bytes (PNG, JPEG, DICOM, CSV, WFDB in a zip, text, as the bundle
                takes); a row ``{column: value}``; an array of the only input, ``(N, ...)`` or one case of it,
                or ``{name: (N, ...)}``, prepared as the bundle says.
            media_type: What a file or bytes are, where their name or first bytes do not tell.
            subject: Key of an A/B test: who has the same one gets the same model.

        Raises:
            UsageError: There is no such file, or the model has several inputs.
            ServerError: The server refused, failed or was not reached.

        Example:
            >>> client.predict({"age": 61, "sex": "female"}).confidence        # doctest: +SKIP
            0.93
        """
        return self._carry_out(flows.predict(self._known, given, media_type=media_type, subject=subject))

    def predict_text(self, text: str, *, subject: str | None = None) -> Prediction:
        """Ask about a text; arguments and errors as `predict`."""
        return self.predict(text.encode(), media_type="text/plain", subject=subject)

    def infer(
        self, inputs: Mapping[str, np.ndarray], *, request_id: str = "", subject: str | None = None
    ) -> Prediction:
        """Ask about arrays, in binary both ways.

        Args:
            inputs: ``{name: (N, ...)}``.
            request_id: Yours; what `feedback` refers to. Left out, the server makes one up.
            subject: Key of an A/B test.

        Raises:
            ServerError: The server refused, failed or was not reached.

        Example:
            >>> client.infer({"input": images}).outputs["logits"].shape       # doctest: +SKIP
            (1, 4)
        """
        return self._carry_out(flows.infer(self._known, inputs, subject=subject, request_id=request_id))

    def ready(self) -> bool:
        """Whether the server, or the model that was named, can be asked now; False where nobody listens."""
        return self._carry_out(flows.ready(self._known))

    def metadata(self) -> dict[str, Any]:
        """What the server says of the model: inputs, outputs, and which variant answers why."""
        return self._carry_out(flows.metadata(self._known))

    def monitor(self) -> dict[str, Any]:
        """What the server's page shows; needs a token of the scope ``monitor`` where there are tokens."""
        return self._carry_out(flows.monitor(self._known))

    def feedback(
        self,
        request_id: str,
        label: str | tuple[str, ...],
        *,
        row: int = 0,
        groups: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Say what turned out to be right.

        Args:
            request_id: `Prediction.request_id`.
            label: One of the bundle's labels; several where a case has several.
            row: Which case of that request.
            groups: Demographic attributes, e.g. ``{"sex": "female"}``.

        Raises:
            ServerError: The server does not know the request any more, or the label.
        """
        return self._carry_out(flows.feedback(self._known, request_id, label, row, groups or {}))

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _carry_out(self, flow: Flow[T]) -> T:
        came: Came = None
        while True:
            try:
                step = flow.send(came)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # typeshed cannot know
            came = self._step(step)

    def _step(self, step: Asked | Pause) -> Came:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return got_of(self._http.send(request_of(self._http, step)))
        except Exception as error:
            return failure(error, self._http)


class AsyncClient:
    """`Client` for ``async`` code: the same methods, awaited.

    Args:
        url: Where the server listens.
        token: Sent with every request.
        model: Name of the model.
        timeout_s: That connecting, sending or waiting for an answer may take, each.
        retries: How often a request is sent again; see `Client`.

    Raises:
        UsageError: The address is none.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8080") as client:        # doctest: +SKIP
        ...     answers = await asyncio.gather(*map(client.predict, files))
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        model: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
    ) -> None:
        self._http = async_http(url, token, timeout_s)
        self._known = Standing(model=model, patience=Patience(retries=retries))

    async def predict(
        self,
        given: Given | np.ndarray,
        *,
        media_type: str | None = None,
        subject: str | None = None,
    ) -> Prediction:
        """Ask about a file, its bytes, a row, or arrays; see `Client.predict`."""
        return await self._carry_out(
            flows.predict(self._known, given, media_type=media_type, subject=subject)
        )

    async def predict_text(self, text: str, *, subject: str | None = None) -> Prediction:
        """Ask about a text; see `Client.predict_text`."""
        return await self.predict(text.encode(), media_type="text/plain", subject=subject)

    async def infer(
        self, inputs: Mapping[str, np.ndarray], *, request_id: str = "", subject: str | None = None
    ) -> Prediction:
        """Ask about arrays; see `Client.infer`."""
        return await self._carry_out(flows.infer(self._known, inputs, subject=subject, request_id=request_id))

    async def ready(self) -> bool:
        """Whether the server can be asked now; see `Client.ready`."""
        return await self._carry_out(flows.ready(self._known))

    async def metadata(self) -> dict[str, Any]:
        """What the server says of the model; see `Client.metadata`."""
        return await self._carry_out(flows.metadata(self._known))

    async def monitor(self) -> dict[str, Any]:
        """What the server's page shows; see `Client.monitor`."""
        return await self._carry_out(flows.monitor(self._known))

    async def feedback(
        self,
        request_id: str,
        label: str | tuple[str, ...],
        *,
        row: int = 0,
        groups: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Say what turned out to be right; see `Client.feedback`."""
        return await self._carry_out(flows.feedback(self._known, request_id, label, row, groups or {}))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _carry_out(self, flow: Flow[T]) -> T:
        came: Came = None
        while True:
            try:
                step = flow.send(came)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # typeshed cannot know
            came = await self._step(step)

    async def _step(self, step: Asked | Pause) -> Came:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return got_of(await self._http.send(request_of(self._http, step)))
        except Exception as error:
            return failure(error, self._http)
