"""P10: the operator's credentials go to the one provider and nowhere else, and the clients' keys nowhere at all."""

import signal
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from gateway.core.keys import parse
from gateway.simulator import Script, Simulator
from prove.conftest import Figure
from prove.test_canary import DEBUGGING, TABLES, ask_a_little, hidden
from tests.canaries import Canaries, Search
from tests.raw_provider import HELLO, RawProvider, answering, wait_forever
from tests.test_canary import Folder, client, converse, launched, make_keys
from tests.test_credentials_stay import asked, calls
from tests.test_server_process import status_of

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "WS_PROXY", "WSS_PROXY")
A_DAY_OF_2020 = ("200101000000Z", "200102000000Z")


def words_of(keys: Mapping[str, str]) -> list[str]:
    """The secrets of keys: what stands before them in a key is public."""
    return [key.secret for key in map(parse, keys.values()) if key is not None]


async def test_no_credential_and_no_key_is_found_where_it_does_not_belong(tmp_path: Path, figure: Figure) -> None:
    """In answers of every status, the log, exceptions, the database, commands; keys at the provider too."""
    folder, canaries = Folder(tmp_path / "work"), Canaries()
    keys = await make_keys(folder.database, "team")
    credentials = [canaries(f"credential {number}") for number in range(3)]
    file = tmp_path / "credentials"
    file.write_text(",".join(credentials))
    names = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")
    from_file = dict.fromkeys(names, "") | {f"{name}_FILE": str(file) for name in names}
    everywhere, at_the_provider = Search(canaries.mark, *words_of(keys)), Search(*words_of(keys))
    said = Canaries()
    async with (
        Simulator(credentials=credentials, accept_any_model=True) as provider,
        launched(folder, provider.origin, **from_file, **DEBUGGING) as running,
        client(running.origin, said) as talking,
    ):
        await converse(talking, provider, keys)
        for table in TABLES:
            with hidden(folder.database, table):
                await ask_a_little(talking, keys["good"])
        for command in (["usage"], ["check"], ["key", "list", "--json"], ["backup", str(folder.backup)]):
            everywhere.look(" ".join(command), (await folder.command(*command)).encode())
        await running.stop(signal.SIGTERM)
    everywhere.look("stderr", running.errors)
    everywhere.files(folder.path)
    for told in talking.told:
        everywhere.look(f"an answer with status {told.status}", told.headers.encode() + told.body)
    for received in provider.received:
        at_the_provider.look(received.path, f"{received.path} {received.headers}".encode() + received.body)
    for name, form in (("x-api-key", "{}"), ("authorization", "Bearer {}")):
        used = {received.header(name) for received in provider.received} - {None}
        assert used == {form.format(credential) for credential in credentials}
    figure("P10", f"{len(credentials)} credentials, {len(words_of(keys))} keys: {everywhere}; answers among them")
    figure("P10", f"keys of clients at the provider: {at_the_provider}")
    assert everywhere.hits == []
    assert at_the_provider.hits == []


async def test_redirects_lead_nobody_anywhere(tmp_path: Path, figure: Figure) -> None:
    folder, answers = Folder(tmp_path / "work"), 0
    key, _ = await folder.database.create_key()
    async with (
        Simulator(accept_any_model=True) as provider,
        RawProvider(wait_forever) as elsewhere,
        launched(folder, provider.origin) as running,
        aiohttp.ClientSession(running.origin) as http,
    ):
        for status in (301, 302, 303, 307, 308):
            location = (("location", f"{elsewhere.origin}/v1/messages"),)
            provider.choose = lambda _received, status=status, headers=location: Script(
                status=status, body=b"", extra_headers=headers
            )
            for call in calls():
                async with asked(http, call, key) as answer:
                    assert answer.status == 502
                    answers += 1
    figure(
        "P10", f"redirects, 5 kinds: connections to the second origin {elsewhere.connections} of {answers} answers"
    )
    assert elsewhere.connections == 0


@pytest.mark.parametrize("without", ["", "*", "elsewhere.example"])
async def test_proxies_in_the_environment_see_nothing(tmp_path: Path, figure: Figure, without: str) -> None:
    folder = Folder(tmp_path / "work")
    key, _ = await folder.database.create_key()
    async with RawProvider(wait_forever) as proxy, Simulator() as provider:
        environment = {name: proxy.origin for name in (*PROXIES, *map(str.lower, PROXIES))}
        environment |= {"NO_PROXY": without, "no_proxy": without}
        async with launched(folder, provider.origin, **environment) as running:
            statuses = [await status_of(running.origin, key) for _ in range(20)]
    figure("P10", f"proxies of the environment (NO_PROXY={without!r}): connections 0 of {len(statuses)} requests")
    assert set(statuses) == {200}
    assert proxy.connections == 0


# Whoever cannot prove to be the provider.


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607


def make_certificate(folder: Path, kind: str) -> ssl.SSLContext:
    """The server's side. Its certificate is `certificate.pem`: the client may be told to trust it."""
    folder.mkdir()
    name = "elsewhere.example" if kind == "of another host" else "localhost"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem"]
    request = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    if kind == "expired":
        configuration = (
            "[ca]\ndefault_ca=own\n[own]\nnew_certs_dir=.\ndatabase=index\nserial=serial\ndefault_md=sha256\n"
            "policy=any\ncopy_extensions=copy\n[any]\ncommonName=supplied\n"
        )
        (folder / "ca.conf").write_text(configuration)
        (folder / "index").touch()
        (folder / "serial").write_text("01")
        openssl("req", "-new", *new_key, *request, "-out", "request.pem", folder=folder)
        begin, end = A_DAY_OF_2020
        signing = ["-selfsign", "-keyfile", "key.pem", "-in", "request.pem", "-out", "certificate.pem"]
        dates = ["-startdate", begin, "-enddate", end]
        openssl("ca", "-batch", "-notext", "-config", "ca.conf", *signing, *dates, folder=folder)
    else:
        openssl("req", "-x509", "-days", "2", *new_key, *request, "-out", "certificate.pem", folder=folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


async def ask_over_tls(tmp_path: Path, kind: str) -> tuple[int, int]:
    """The status that the client gets, and how many connections got as far as to be heard."""
    folder, certificates = Folder(tmp_path / "work"), tmp_path / "tls"
    key, _ = await folder.database.create_key()
    context = make_certificate(certificates, kind)
    trusted = {} if kind == "vouched for by nobody" else {"SSL_CERT_FILE": str(certificates / "certificate.pem")}
    async with (
        RawProvider(answering(HELLO, HELLO, HELLO), context) as provider,
        launched(folder, provider.origin, **trusted) as running,
    ):
        return await status_of(running.origin, key), provider.connections


@pytest.mark.parametrize("kind", ["vouched for by nobody", "expired", "of another host"])
async def test_who_cannot_prove_to_be_the_provider_hears_nothing(tmp_path: Path, figure: Figure, kind: str) -> None:
    status, connections = await ask_over_tls(tmp_path, kind)
    figure("P10", f"a certificate {kind}: connections on which a byte of a request came: {connections}")
    assert (status, connections) == (502, 0)


async def test_who_can_prove_it_is_asked(tmp_path: Path) -> None:
    """So it is the certificate that the others fail by."""
    status, connections = await ask_over_tls(tmp_path, "in order")
    assert status == 200
    assert connections > 0
