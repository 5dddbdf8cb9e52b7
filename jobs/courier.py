"""The courier: takes webhooks out of the outbox and brings them to their endpoints.

It runs in the API's processes, which are those that may speak with the outside; any number of them
may share a database.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import structlog

from jobs.audit import SERVICE, acting_as
from jobs.errors import StoreUnavailable
from jobs.outbox import Delivery, Outbox
from jobs.sending import AddressRefused, Networks, Unreachable, post
from jobs.signing import signed_headers

log = structlog.get_logger()

POLL_S = 1.0
AT_ONCE = 4
FIRST_DELAY_S, LONGEST_DELAY_S = 5.0, 3600.0

Outcome = Literal["delivered", "bad_status", "unreachable", "address_refused", "given_up"]


class Courier:
    """Runs in a thread of its own from `start` until `close`; tries that are under way end first.

    `retry_s`: how long after a job's end its webhook is tried. `observe` is told of every outcome.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        networks: Networks,
        retry_s: float,
        observe: Callable[[Outcome], None],
        poll_s: float = POLL_S,
        first_delay_s: float = FIRST_DELAY_S,
    ) -> None:
        self._outbox, self._networks, self._retry_s = outbox, networks, retry_s
        self._observe, self._poll_s, self._first_delay_s = observe, poll_s, first_delay_s
        self._closing = threading.Event()
        self._free = threading.Semaphore(AT_ONCE)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="courier")
        self._thread = threading.Thread(target=self._loop, daemon=True, name="courier")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._pool.shutdown(wait=True)

    def _loop(self) -> None:
        while not self._closing.is_set():
            if not self._free.acquire(timeout=self._poll_s):
                continue
            delivery = self._next()
            if delivery is None:
                self._free.release()
                self._closing.wait(self._poll_s)
            else:
                self._pool.submit(self._bring, delivery)

    def _next(self) -> Delivery | None:
        try:
            return self._outbox.claim()
        except StoreUnavailable as error:
            log.warning("courier.failed", error=str(error))
        except Exception:  # without the courier nobody would hear of anything
            log.exception("courier.broken")
        return None

    def _bring(self, delivery: Delivery) -> None:
        try:
            with acting_as(SERVICE):
                self._settle(delivery, self._deliver(delivery))
        except StoreUnavailable as error:  # the claim runs out, and it is tried again
            log.warning("courier.failed", error=str(error))
        except Exception:
            log.exception("courier.broken", event_id=delivery.event_id)
        finally:
            self._free.release()

    def _deliver(self, delivery: Delivery) -> Outcome:
        """A try that breaks something here is a try too: it must have an end some day."""
        try:
            return deliver(delivery, self._networks)
        except Exception:
            log.exception("courier.broken", event_id=delivery.event_id)
            return "unreachable"

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        self._observe(outcome)
        told = {
            "event_id": delivery.event_id,
            "endpoint_id": delivery.endpoint.id,
            "tries": delivery.tries,
        }
        if outcome == "delivered":
            self._outbox.delivered(delivery)
            log.info("webhook.delivered", **told)
            return
        wait_s = delay_s(delivery.tries, self._first_delay_s)
        log.warning("webhook.not_delivered", outcome=outcome, **told)
        if not self._outbox.postpone(delivery, wait_s, self._retry_s):
            self._observe("given_up")
            log.error("webhook.given_up", **told)


def delay_s(tries: int, first_s: float = FIRST_DELAY_S) -> float:
    """Twice as long after each try, up to an hour, and up to half of that sooner by chance."""
    longest = min(LONGEST_DELAY_S, first_s * 2.0 ** min(tries - 1, 30))
    return longest * random.uniform(0.5, 1.0)


def deliver(delivery: Delivery, networks: Networks) -> Outcome:
    """One try."""
    timestamp = int(time.time())
    keys = delivery.endpoint.secrets
    headers = signed_headers(delivery.event_id, timestamp, delivery.body, keys)
    try:
        status = post(delivery.endpoint.url, delivery.body, headers, networks)
    except AddressRefused:
        return "address_refused"
    except Unreachable:
        return "unreachable"
    return "delivered" if 200 <= status < 300 else "bad_status"
