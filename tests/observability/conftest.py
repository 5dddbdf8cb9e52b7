"""One service that is used and watched, for all tests that look at what it showed."""

from collections.abc import Iterator

import pytest

from tests import servers
from tests.bases import make_base
from tests.observability.service import Watched, use, watched
from tests.servers import S3Server


@pytest.fixture(scope="module")
def service(
    s3_server: S3Server, promtool: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    base = make_base(tmp_path_factory.mktemp("base"))
    with servers.fresh_bucket(s3_server) as s3, watched(base, folder, s3) as running:
        use(running)
        yield running
