"""Every combination of what can be known of a node; and that no word widens a radius."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.radius import (
    LOCAL,
    PUBLIC,
    RADII,
    TRUSTED,
    TrustList,
    distance,
    furthest,
    nearest,
    parse_header,
    parse_radius,
    radius_of,
    reaches,
)

NODE, ME, FRIEND = b"n" * 32, b"m" * 32, b"f" * 32


# --- words ------------------------------------------------------------------------------------------------------


def test_a_request_reaches_what_is_as_near_as_it_may_go() -> None:
    reached = {allowed: [radius for radius in RADII if reaches(allowed, radius)] for allowed in RADII}
    assert reached == {"local": ["local"], "trusted": ["local", "trusted"], "public": ["local", "trusted", "public"]}


@pytest.mark.parametrize("word", ["", "everyone", "Public", "public ", "PUBLIC\0"])
def test_what_is_no_radius_is_beyond_all(word: str) -> None:
    assert not any(reaches(allowed, word) for allowed in (*RADII, word))
    assert not any(reaches(word, radius) for radius in RADII)
    assert distance(word) > distance(PUBLIC) and furthest([LOCAL, word]) == PUBLIC and nearest([word]) == PUBLIC


def test_the_furthest_and_the_nearest_of_several() -> None:
    assert furthest([]) == LOCAL and nearest([]) == PUBLIC
    for one, other in product(RADII, RADII):
        assert {furthest([one, other]), nearest([one, other])} == {one, other}
    assert furthest(RADII) == PUBLIC and nearest(RADII) == LOCAL


@pytest.mark.parametrize(("text", "radius"), [("public", PUBLIC), (" Trusted ", TRUSTED), ("LOCAL", LOCAL)])
def test_case_and_spaces_of_a_header_do_not_matter(text: str, radius: str) -> None:
    assert parse_radius(text) == parse_header([text.encode()], TRUSTED) == radius


@pytest.mark.parametrize("values", [[b""], [b"world"], [b"local,public"], [b"publi\xff"], [b"x" * 9999], [b"0"]])
def test_any_other_header_is_refused_in_words(values: list[bytes]) -> None:
    with pytest.raises(ValueError, match="is not one of local, trusted, public") as caught:
        parse_header(values, LOCAL)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("second", RADII)
def test_two_headers_are_refused_even_when_they_agree(second: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_header([b"local", second.encode()], LOCAL)


def test_without_a_header_the_default_holds() -> None:
    assert [parse_header([], radius) for radius in RADII] == list(RADII)


# --- nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "nodes", "owners", "member", "stranger"),
    [
        # owner by certificate, said of the node, said of that owner -> in the private mesh, outside of it
        (None, None, None, TRUSTED, PUBLIC),
        (ME, None, None, LOCAL, LOCAL),
        (FRIEND, None, None, TRUSTED, PUBLIC),
        (FRIEND, None, "trusted", TRUSTED, TRUSTED),
        (FRIEND, None, "local", LOCAL, LOCAL),
        (FRIEND, None, "none", TRUSTED, PUBLIC),
        (ME, None, "none", TRUSTED, PUBLIC),
        (ME, None, "trusted", TRUSTED, TRUSTED),
        (None, "local", None, LOCAL, LOCAL),
        (None, "trusted", None, TRUSTED, TRUSTED),
        (None, "none", None, TRUSTED, PUBLIC),
        # what was said of the node counts before what was said of its owner
        (ME, "none", None, TRUSTED, PUBLIC),
        (ME, "trusted", "local", TRUSTED, TRUSTED),
        (FRIEND, "none", "local", TRUSTED, PUBLIC),
        (FRIEND, "local", "none", LOCAL, LOCAL),
    ],
)
def test_where_a_node_is(owner, nodes, owners, member, stranger) -> None:  # type: ignore[no-untyped-def]
    trust = TrustList({NODE: nodes} if nodes else {}, {owner: owners} if owners else {})
    for inside, expected in ((True, member), (False, stranger)):
        assert radius_of(NODE, in_private_mesh=inside, owner=owner, my_owner=ME, trust=trust) == expected


def test_nobody_owns_a_node_whose_owner_is_not_known() -> None:
    """Two nodes without an owner are not one owner's."""
    assert radius_of(NODE, in_private_mesh=False, owner=None, my_owner=None, trust=TrustList()) == PUBLIC
    assert radius_of(NODE, in_private_mesh=True, owner=ME, my_owner=None, trust=TrustList()) == TRUSTED


def test_a_word_about_a_node_says_nothing_of_an_owner_of_that_key() -> None:
    trust = TrustList({ME: "local"}, {NODE: "local"})
    assert radius_of(NODE, in_private_mesh=False, owner=ME, my_owner=None, trust=trust) == PUBLIC


KEYS = st.sampled_from([NODE, ME, FRIEND])
GRANTS = st.dictionaries(KEYS, st.sampled_from(["local", "trusted", "none"]))


@settings(deadline=None, derandomize=True)
@given(KEYS, st.none() | KEYS, st.none() | KEYS, GRANTS, GRANTS, st.booleans())
def test_nothing_but_the_list_or_ones_own_owner_brings_a_node_nearer(node, owner, mine, nodes, owners, inside) -> None:  # type: ignore[no-untyped-def]
    found = radius_of(node, in_private_mesh=inside, owner=owner, my_owner=mine, trust=TrustList(nodes, owners))
    outside = TRUSTED if inside else PUBLIC
    assert distance(found) <= distance(outside)
    if distance(found) < distance(outside):
        assert found in (nodes.get(node), owners.get(owner)) or (found == LOCAL and owner == mine is not None)
