"""The URL that the hub gets for each kind of connection object."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import connection
from lightkube_template_spawner.objects.connection import Address, Route, lookup

KEY = "kubetemplatespawner/connection"
DNS = Route(service_address="dns")


def live(kind: str, *, port: str = "", scheme: str = "", address: str = "", **more: Any) -> Any:
    written = {"port": port, "scheme": scheme, "address": address}
    annotations = {KEY: "true", **{f"{KEY}-{k}": v for k, v in written.items() if v}}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": "x", "namespace": "ns", "annotations": annotations},
    } | more


def pod(ip: str | None = "10.0.0.5", **written: str) -> Any:
    ports = [{"name": "notebook", "containerPort": 8889}, {"containerPort": 1}]
    return live("Pod", **written, spec={"containers": [{}, {"ports": ports}]}, status={"podIP": ip})


def service(*ports: dict[str, Any], written: dict[str, str] | None = None, **spec: Any) -> Any:
    return live(
        "Service", **(written or {}), spec={"clusterIP": "10.1.2.3", "ports": list(ports), **spec}
    )


def url(thing: Any, route: Route = Route()) -> str | None:  # noqa: B008 - frozen
    """Of an object that is as the template wrote it."""
    return connection.url(thing, Address.written(thing, route.annotation_key), route)


# -- pods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (pod(), "http://10.0.0.5:8888"),
        (pod("fd00::5"), "http://[fd00::5]:8888"),
        (pod(port="9000"), "http://10.0.0.5:9000"),
        (pod(port="notebook"), "http://10.0.0.5:8889"),
        (pod(scheme="https"), "https://10.0.0.5:8888"),
        (pod(None), None),
        (live("Pod"), None),
        (live("Pod", status=None), None),
    ],
)
def test_a_pods_url(thing: Any, expected: str | None) -> None:
    assert url(thing) == expected


def test_a_pods_url_follows_the_hubs_port_and_scheme() -> None:
    assert url(pod(), Route(port=9999, scheme="https")) == "https://10.0.0.5:9999"


@pytest.mark.parametrize("port", ["nope", "-1", "²", "0", "999999"])
@pytest.mark.parametrize("ip", [None, "10.0.0.5"])
def test_a_port_that_a_pod_lacks_is_an_error_from_the_start(ip: str | None, port: str) -> None:
    with pytest.raises(ManifestError, match=f"x: port '{port}' is not a port number or name"):
        url(pod(ip, port=port))


# -- services -------------------------------------------------------------------------------------

HTTP = {"name": "http", "port": 80, "targetPort": 8888}
METRICS = {"name": "metrics", "port": 9100, "targetPort": "metrics"}


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (service({"port": 8888}), 8888),
        (service(METRICS, {"port": 8888}), 8888),
        (service(METRICS, HTTP), 80),
        (service({"port": 80, "targetPort": "notebook"}), 80),
        (service(HTTP, METRICS, written={"port": "metrics"}), 9100),
        (service(HTTP, METRICS, written={"port": "9100"}), 9100),
        (service(written={"port": "81"}), 81),
        (service(), 8888),
    ],
    ids=["same", "same of two", "target", "single", "by name", "by number", "none, told", "none"],
)
def test_a_services_port(thing: Any, expected: int) -> None:
    assert url(thing) == f"http://10.1.2.3:{expected}"


@pytest.mark.parametrize(
    ("thing", "wanted"),
    [
        (service(METRICS, {"port": 443}), "8888"),
        (service(HTTP, METRICS, written={"port": "web"}), "web"),
        (service(HTTP, written={"port": "8080"}), "8080"),
    ],
)
def test_a_port_that_a_service_lacks_is_named_with_those_it_has(thing: Any, wanted: str) -> None:
    with pytest.raises(ManifestError, match=rf"Service ns/x has no port {wanted} \(it has .*=.*\)"):
        url(thing)


def test_the_message_names_the_configured_annotation() -> None:
    with pytest.raises(ManifestError, match=r"annotation my/key-port$"):
        url(service(HTTP, METRICS, {"port": 1}), Route(annotation_key="my/key", port=2))


def test_a_service_is_called_by_ip_or_by_name() -> None:
    assert url(service({"port": 8888}), DNS) == "http://x.ns.svc.cluster.local:8888"
    elsewhere = Route(service_address="dns", cluster_domain="example")
    assert url(service({"port": 8888}), elsewhere) == "http://x.ns.svc.example:8888"
    assert url(service({"port": 8888}, clusterIP="fd00::1")) == "http://[fd00::1]:8888"


@pytest.mark.parametrize("address", ["None", "", None])
def test_a_service_without_an_ip_is_called_by_name(address: str | None) -> None:
    assert url(service({"port": 8888}, clusterIP=address)) == "http://x.ns.svc.cluster.local:8888"


@pytest.mark.parametrize(
    ("ports", "written", "expected"),
    [
        ([HTTP], {}, 8888),
        ([], {}, 8888),
        ([HTTP], {"port": "http"}, 8888),
        ([HTTP], {"port": "80"}, 8888),
        ([METRICS], {"port": "metrics"}, 9100),
        ([{"name": "web", "port": 81}], {"port": "web"}, 81),
        ([HTTP], {"port": "7777"}, 7777),
    ],
)
def test_behind_a_headless_service_the_pods_own_port_counts(
    ports: list[dict[str, Any]], written: dict[str, str], expected: int
) -> None:
    thing = service(*ports, written=written, clusterIP="None")
    assert url(thing) == f"http://x.ns.svc.cluster.local:{expected}"


def test_a_port_name_that_a_headless_service_lacks_is_an_error() -> None:
    with pytest.raises(ManifestError, match="'web' is not a port number or name"):
        url(service(HTTP, written={"port": "web"}, clusterIP="None"))


def test_an_external_name_is_called_by_it() -> None:
    spec = {"type": "ExternalName", "externalName": "nb.example.com"}
    assert url(live("Service", spec=spec)) == "http://nb.example.com:8888"
    assert url(live("Service", spec=spec, port="80")) == "http://nb.example.com:80"
    assert url(live("Service", spec={**spec, "ports": [HTTP]}, port="http")) == (
        "http://nb.example.com:80"
    )


def test_a_service_made_an_external_name_is_refused() -> None:
    thing = service({"port": 8888}, type="ExternalName", externalName="169.254.169.254")
    for route in (Route(), DNS):
        with pytest.raises(ManifestError, match="Service ns/x is an ExternalName, which the temp"):
            connection.url(thing, Address(), route)


def test_the_external_name_is_the_templates() -> None:
    thing = live("Service", spec={"type": "ExternalName", "externalName": "169.254.169.254"})
    for changed in (thing, service({"port": 8888})):
        assert connection.url(changed, Address(external_name="nb.example.com"), Route()) == (
            "http://nb.example.com:8888"
        )


# -- annotations of a live object -----------------------------------------------------------------


@pytest.mark.parametrize("thing", [pod(), service({"port": 8888}), live("Notebook")])
def test_annotations_of_a_live_object_lead_nowhere(thing: Any) -> None:
    before = connection.url(thing, Address(), Route())
    annotations = {"x": "169.254.169.254", f"{KEY}-address": "{.metadata.annotations.x}",
                   f"{KEY}-port": "80", f"{KEY}-scheme": "https"}  # fmt: skip
    patched = {**thing, "metadata": {**thing["metadata"], "annotations": annotations}}
    assert connection.url(patched, Address(), Route()) == before


# -- records of earlier versions ------------------------------------------------------------------

EXTERNAL = {"type": "ExternalName", "externalName": "10.1.2.3"}


@pytest.mark.parametrize(
    ("thing", "known", "address"),
    [
        (pod(), "https://10.0.0.5:9000", Address(port="9000", scheme="https")),
        (pod("fd00::5"), "http://[fd00::5]:8888", Address(port="8888", scheme="http")),
        (pod(), "http://192.0.2.1:8888", None),
        (pod(), "", Address()),
        (service(), "http://10.1.2.3:8888", Address(port="8888", scheme="http")),
        (service(), "http://192.0.2.1:8888", None),
        (live("Service", spec=EXTERNAL), "http://10.1.2.3:8888", None),
        (live("Service", spec=EXTERNAL), "", None),
        (live("Notebook"), "http://192.0.2.1:8888", None),
        (live("Notebook"), "", None),
    ],
)
def test_an_earlier_versions_url_keeps_its_port_and_scheme_where_it_was_the_objects_own(
    thing: Any, known: str, address: Address | None
) -> None:
    assert connection.recalled(thing, known, Route()) == address


# -- any other kind -------------------------------------------------------------------------------


def custom(found: object, **written: str) -> Any:
    return live("Notebook", address="{.status.url}", status={"url": found}, **written)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("http://nb.example.com", "http://nb.example.com:80"),
        ("https://nb.example.com", "https://nb.example.com:443"),
        ("https://nb.example.com/hub/", "https://nb.example.com:443"),
        ("http://nb.example.com:8080/x?y#z", "http://nb.example.com:8080"),
        ("nb.example.com", "http://nb.example.com:8888"),
        ("nb.example.com:81", "http://nb.example.com:81"),
        ("10.0.0.5", "http://10.0.0.5:8888"),
        ("fd00::1", "http://[fd00::1]:8888"),
        ("[fd00::1]:81", "http://[fd00::1]:81"),
        ("http://[fd00::1]", "http://[fd00::1]:80"),
    ],
)
def test_an_address_is_a_url_a_host_or_host_and_port(found: str, expected: str) -> None:
    assert url(custom(found)) == expected


@pytest.mark.parametrize("found", [None, "", 3, {}, ["x"]])
def test_there_is_no_url_before_there_is_an_address(found: object) -> None:
    assert url(custom(found)) is None
    assert url(live("Notebook", address="{.status.url}")) is None


@pytest.mark.parametrize(
    "found", ["http://", "http://x:port", "x:99999", "http://[fd00", "ftp://x", "mailto://"]
)
def test_an_address_that_is_none_is_an_error(found: str) -> None:
    with pytest.raises(ManifestError, match=f"connection address {re.escape(repr(found))}"):
        url(custom(found))


def test_port_and_scheme_may_be_told() -> None:
    assert url(custom("http://x:1", port="2")) == "http://x:2"
    assert url(custom("x", scheme="https")) == "https://x:8888"
    assert url(custom("http://x", scheme="https")) == "http://x:80"
    assert url(custom("x"), Route(scheme="https", port=8000)) == "https://x:8000"


def test_an_address_counts_for_pods_and_services_too() -> None:
    thing = live("Service", address="{.status.loadBalancer.ingress[0].ip}", port="80", spec={})
    assert url(thing) is None
    thing["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    assert url(thing) == "http://192.0.2.1:80"


def test_another_kind_without_address_has_no_url() -> None:
    assert url(live("Notebook")) is None
    assert url(service({"port": 8888}) | {"apiVersion": "serving.knative.dev/v1"}) is None


def test_a_custom_annotation_key() -> None:
    thing = pod()
    thing["metadata"]["annotations"] = {"my/key-port": "1", f"{KEY}-port": "2"}
    assert url(thing, Route(annotation_key="my/key")) == "http://10.0.0.5:1"


# -- paths ----------------------------------------------------------------------------------------

TREE = {
    "status": {
        "url": "u",
        "a-b": {"c_d": 1},
        "dotted.key/x": "d",
        "addresses": [
            {"type": "IP", "value": "1"},
            {"type": "Hostname", "value": "2", "deep": {"er": "y"}},
            "text",
        ],
        "empty": None,
        "false": False,
    }
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{.status.url}", "u"),
        (".status.url", "u"),
        ("{$.status.url}", "u"),
        (" { .status.url } ", "u"),
        ("{.status['url']}", "u"),
        ('{.status["dotted.key/x"]}', "d"),
        ("{.status.a-b.c_d}", 1),
        ("{.status.addresses[0].value}", "1"),
        ("{.status.addresses[-2].value}", "2"),
        ('{.status.addresses[?(@.type=="Hostname")].value}', "2"),
        ("{.status.addresses[?(@.type == 'IP')].value}", "1"),
        ("{.status.addresses[?(@.deep.er=='y')].type}", "Hostname"),
        ("{.status.false}", False),
        ("{.status.none}", None),
        ("{.status.empty.more[0]['x']}", None),
        ("{.status.addresses[9].value}", None),
        ("{.status.addresses[-9].value}", None),
        ("{.status.addresses[?(@.type=='None')].value}", None),
        ("{.status.addresses.value}", None),
        ("{.status.url.more}", None),
        ("{.status.url[0]}", None),
        ("{.status.url[?(@.a=='b')]}", None),
    ],
)
def test_a_path_leads_to(path: str, expected: object) -> None:
    assert lookup(TREE, path) == expected


@pytest.mark.parametrize(
    "path",
    ["status.url", "{.status.addresses[*].value}", "{..url}", "{.status.}", "{.status[url]}",
     "{.a b}", "{.status.none[*]}", "{.status.addresses[?(@.n==1)]}", "{range .items}", "{.a}{.b}"],
)  # fmt: skip
@pytest.mark.parametrize("tree", [TREE, {}])
def test_a_path_that_is_none_is_an_error_whatever_is_there(path: str, tree: Any) -> None:
    with pytest.raises(ManifestError, match="is not a path like"):
        lookup(tree, path)


# -- the mark -------------------------------------------------------------------------------------


def test_only_the_word_true_marks() -> None:
    assert connection.is_connection(pod(), KEY)
    assert not connection.is_connection(pod(), "another/key")
    assert not connection.is_connection({"metadata": {"annotations": {KEY: "True"}}}, KEY)
    assert not connection.is_connection({"metadata": {"annotations": None}}, KEY)
    assert not connection.is_connection({"metadata": {}}, KEY)


def test_exactly_one_is_marked() -> None:
    assert connection.only_one(["Pod/x"], KEY) == "Pod/x"
    with pytest.raises(ManifestError, match=f'no object has the annotation {KEY}: "true"'):
        connection.only_one([], KEY)
    with pytest.raises(ManifestError, match=r"2 objects .*: Pod/x, Pod/y$"):
        connection.only_one(iter(["Pod/x", "Pod/y"]), KEY)
