"""The page in Chromium, before `nightjar serve` over a small shop whose models were really trained.

The pictures of the docs come from here: PICTURES=docs/images pytest -m services tests/serving_export/online
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Error, expect, sync_playwright

import nightjar
from dags.ports import LOOPBACK, claimed_port
from serving_export.reader import Recommendations

pytestmark = pytest.mark.services

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
EVIL = "<script>document.title='run'</script>"
SMALL = {"hidden_size": 16, "epochs": 2, "batch_size": 64}
SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def shop(tmp_path_factory, raw_shop, write_site, empty_mlflow, load):
    """A night of a shop with two channels. What serves predicts intents; beside it stand a GRU, and HRNN, which reads
    what users did before. One title is a script."""
    home = tmp_path_factory.mktemp("page")
    shutil.copytree(raw_shop.home / "raw", home / "raw")
    shutil.copy(empty_mlflow, home / "mlflow.db")
    items = home / "raw" / "items.csv"
    items.write_text(re.sub(r"(?m)^(sku-00000),[^,]*", rf"\1,{EVIL}", items.read_text()))
    channels = {"home": {}, "mail": {"top_n": 5, "max_per_category": 1}}
    recipes = {"intentrec": SMALL, "gru": SMALL, "hrnn": SMALL}
    shop = write_site(home, training={"recipes": recipes}, export={"top_n": 20, "channels": channels})
    load(shop, shop.days[:4])
    night = shop.days[3]
    nightjar.features(shop.site, shop.store, night)
    nightjar.train(shop.site, shop.store, night, "intentrec", 1)
    for step in ("promote", "refit", "export"):
        nightjar.STEPS[step](shop.site, shop.store, night)
    for recipe in ("gru", "hrnn"):
        nightjar.train(shop.site, shop.store, night, recipe, 1)
    return shop


@pytest.fixture(scope="module")
def start(shop):
    """Start the endpoint: its process and its address."""

    @contextlib.contextmanager
    def started():
        log = shop.home / "serve.log"
        program = Path(sys.executable).with_name("nightjar")
        environment = os.environ | {"NIGHTJAR_HOME": str(shop.home)}
        with claimed_port(8700) as port, log.open("w") as output:
            command = [program, "serve", "--site", shop.file, "--port", str(port)]
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            try:
                wait_until_ready(f"http://{LOOPBACK}:{port}", process, log)
                yield process, f"http://{LOOPBACK}:{port}"
            finally:
                process.kill()
                process.wait()

    return started


def wait_until_ready(address, process, log):
    """Return once the endpoint answers; fail with its log where it does not come up."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ready"):
            return
        time.sleep(0.2)
    pytest.fail(f"`nightjar serve` does not answer:\n{log.read_text()}")


@pytest.fixture(scope="module")
def address(start):
    with start() as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser(find_program):
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_program("chromium"))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page in a window of its own; at the end nothing was complained of, and nothing asked elsewhere."""
    complaints, asked = [], []
    with contextlib.ExitStack() as opened:

        def opening(path="", *, shows=".list li", size=DESKTOP, **options):
            options = {"reduced_motion": "reduce"} | options
            context = opened.enter_context(contextlib.closing(browser.new_context(viewport=size, **options)))
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"{address}/{path}")
            page.locator(shows).first.wait_for()
            return page

        opening.complaints = complaints
        yield opening
    assert complaints == []
    assert [url for url in asked if not re.match(r"http://127\.0\.0\.1:\d+/", url)] == []


@pytest.fixture
def picture(tmp_path):
    """Keep a picture of a page, for the docs where PICTURES says so."""
    folder = Path(os.environ.get("PICTURES") or tmp_path)

    def take(page, name, *, full=True):
        shot = Image.open(io.BytesIO(page.screenshot(full_page=full)))
        shot.save(folder / f"{name}.webp", lossless=True, method=6)  # a third of a png

    return take


def titles(page, side=0):
    return page.locator(".list").nth(side).locator("button").all_inner_texts()


def events(page):
    return page.locator("#events .name").all_inner_texts()


def settle(page):
    """Wait until the lists are those of what was done last."""
    expect(page.locator(".side[aria-busy]")).to_have_count(0)


def told_after(page, act):
    """Do something; what a screen reader is told of it."""
    told = page.locator("#told")
    before = told.text_content()
    act()
    expect(told).not_to_have_text(before)
    settle(page)
    return told.text_content()


def choose_user(page, user):
    field = page.get_by_role("combobox", name="Pick or type a user")
    field.fill(user)
    told = told_after(page, lambda: field.press("Enter"))
    assert told.startswith(f"User {user}.")


def search(page, words):
    field = page.get_by_role("combobox", name="Search the catalogue")
    field.fill(words)
    page.locator("#found li", has_text=words).first.wait_for()  # before it, the list was that of no words
    return field


def a_user(shop):
    """Somebody with a list and a history."""
    return Recommendations(shop.store.root, when_stale="ignore").channel("home").collect()["user_id"].sort()[0]


def test_a_session_from_the_first_click_to_the_last(open_page, shop, picture):
    page = open_page()
    assert page.locator("#site").inner_text() == "small"
    assert page.title().startswith("small")
    assert page.locator(".note").first.inner_text().startswith("Popular items")
    assert set(page.locator(".source").all_inner_texts()) == {"popular"}

    user = a_user(shop)
    choose_user(page, user)
    exported = Recommendations(shop.store.root, when_stale="ignore").user(user)
    shown = page.locator(".list").first.locator("li").evaluate_all("rows => rows.map((row) => row.dataset.item)")
    assert shown == exported.filter(channel="home").sort("rank")["item_id"].to_list()[:12]
    card = page.locator("#history li").first
    assert all(card.locator(part).inner_text() for part in ("button", ".category", "time"))

    last_night = titles(page)
    told = told_after(page, lambda: (search(page, "silk"), page.locator("#found li").first.click()))
    assert "is in the session. First of 12:" in told
    [first] = events(page)
    after_one = titles(page)
    assert after_one != last_night
    assert set(page.locator(".source").all_inner_texts()) == {"model"}
    assert all(re.fullmatch(r"score -?\d+\.\d\d", told) for told in page.locator(".score").all_text_contents())
    assert set(page.locator(".reason").all_inner_texts()) == {f"because you viewed {first}"}

    clicked = after_one[2]
    told_after(page, lambda: page.get_by_role("button", name=f"Add {clicked} to the session").first.click())
    assert events(page) == [first, clicked]
    after_two = titles(page)
    assert after_two != after_one
    assert page.locator(".moved").count() > 0

    page.locator(".list li").nth(3).hover()
    expect(page.locator("#influenced")).to_have_text(after_two[3])
    assert len(page.locator("#events .influence .number").all_inner_texts()) == 2
    picture(page, "online")

    told = told_after(page, lambda: page.get_by_role("button", name=f"Remove {clicked} from the session").click())
    assert told.startswith(f"{clicked} is out of the session.")
    assert titles(page) == after_one
    told_after(page, lambda: page.get_by_role("button", name="Clear").click())
    assert titles(page) == last_night


def test_an_event_against_an_item_is_a_bar_to_the_left(open_page):
    page = open_page("#item=sku-00001&item=sku-00004&item=sku-00007")
    seen = set()
    for row in page.locator(".list li").all():
        row.hover()
        expect(page.locator("#influenced")).to_have_text(row.locator("button").inner_text())
        told = page.locator("#events .influence").evaluate_all(
            "all => all.map((each) => { const [whole, part] = [each.firstChild, each.firstChild.firstChild]"
            ".map((one) => one.getBoundingClientRect()); const middle = (whole.left + whole.right) / 2;"
            "return [each.lastChild.textContent[0], part.right < middle + 1, part.left > middle - 1]; })"
        )
        assert len(told) == 3
        seen |= {tuple(each) for each in told if each[0] != "0"}
    assert {("+", False, True), ("-", True, False)} <= seen
    assert not {("+", True, False), ("-", False, True)} & seen


def test_an_item_that_nothing_speaks_for_says_so(open_page):
    def without_reason(route):
        answer = route.fetch()
        told = answer.json()
        del told["items"][0]["because"]
        route.fulfill(response=answer, json=told)

    page = open_page()
    page.route("**/recommend", without_reason)
    told_after(page, lambda: page.locator(".list button").first.click())
    reasons = page.locator(".reason").all_inner_texts()
    assert reasons[0] == "nothing that was done speaks for it"
    assert len(reasons) == len(titles(page))


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(open_page):
    page = open_page()
    held = []
    page.route("**/recommend", lambda route: held.append(route))
    page.locator(".list button").nth(0).click()
    page.locator(".list button").nth(1).click()
    while len(held) < 2:
        page.wait_for_timeout(20)
    told_after(page, held[1].continue_)
    newest = titles(page)
    with contextlib.suppress(Error):  # the page does not wait for it any more
        held[0].continue_()
    page.wait_for_timeout(1000)
    page.unroute("**/recommend")
    assert titles(page) == newest
    assert len(events(page)) == 2


def test_intents_are_bars_whose_lengths_are_their_numbers(open_page):
    page = open_page("#item=sku-00001&item=sku-00004")
    intents = page.locator("#bars section")
    assert intents.locator("h3").all_inner_texts() == ["Event type", "Category", "Item age", "New or repeat"]
    kinds = intents.first.locator("li")
    shares = [int(told.removesuffix(" %")) for told in kinds.locator(".number").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert 99 <= sum(shares) <= 101
    lengths = kinds.locator(".bar").evaluate_all(
        "bars => bars.map((bar) => bar.firstChild.offsetWidth / bar.offsetWidth)"
    )
    assert lengths == pytest.approx([share / 100 for share in shares], abs=0.02)


def test_two_models_stand_side_by_side(open_page, picture):
    page = open_page("#item=sku-00001&item=sku-00004", color_scheme="dark")
    served = titles(page)
    told_after(
        page, lambda: page.get_by_role("combobox", name="Beside it").select_option(label="gru, version 3 (train)")
    )
    assert titles(page) == served
    other = titles(page, 1)
    assert len(other) == len(served) == 12
    both = len(set(served) & set(other))
    assert page.locator("#overlap").inner_text().startswith(f"{both} of 12 are in both lists")
    assert page.locator(".list").nth(1).locator(".alone").count() == 12 - both
    picture(page, "online-two-models")
    told_after(
        page,
        lambda: page.get_by_role("combobox", name="Model", exact=True).select_option(label="gru, version 3 (train)"),
    )
    assert titles(page) == titles(page, 1) == other


def test_what_a_user_did_before_is_told_beside_the_session(open_page):
    user = "#user=u00004&item=sku-00001"
    page = open_page(user)
    page.locator(".list li").nth(1).hover()
    assert page.locator("#before").inner_text() == ""
    page = open_page(f"{user}&model-0=4")
    expect(page.locator("#history li").first).to_be_visible()
    page.locator(".list li").nth(1).hover()
    told = page.locator("#before").inner_text()
    told = told.removeprefix("Before this session: ").split(" · ")
    known = page.locator("#history button").all_inner_texts()
    assert {re.sub(r" [+-]?\d+\.\d\d$", "", part) for part in told} <= set(known)


def test_each_channel_has_its_own_list(open_page):
    page = open_page("#item=sku-00001")
    for channel, length in (("mail", 5), ("home", 12)):
        page.get_by_role("combobox", name="Channel").select_option(channel)
        expect(page.locator(".list").first.locator("li")).to_have_count(length)


def test_a_title_that_is_a_script_is_shown_and_not_run(open_page):
    page = open_page()
    told_after(page, lambda: search(page, "script").press("Enter"))
    assert events(page) == [EVIL]
    assert EVIL in page.locator("#told").text_content()
    assert EVIL in page.locator(".reason").first.inner_text()
    assert page.title() != "run"
    assert page.evaluate("document.scripts.length") == 2


def test_keys_act_on_what_is_typed_and_not_on_what_half_of_it_found(open_page):
    page = open_page()
    field = page.get_by_role("combobox", name="Search the catalogue")
    field.focus()
    page.locator("#found li").first.wait_for()
    field.evaluate("field => { field.value = 'script'; }")  # faster than anybody types: no list for it yet
    page.keyboard.press("ArrowDown")
    expect(page.locator("#found li .name")).to_have_text([EVIL])
    expect(page.locator("#found [aria-selected=true]")).to_have_count(1)
    field.evaluate("field => { field.value = 'silk'; }")
    page.locator("#user").focus()
    field.focus()
    told_after(page, lambda: page.keyboard.press("Enter"))
    assert "Silk" in events(page)[0]


def test_the_routes_are_described_without_a_network(open_page):
    page = open_page("docs", shows=".opblock")
    assert "/recommend" in page.locator(".opblock-summary-path").all_inner_texts()


def test_markup_that_a_fault_would_let_in_is_refused_by_the_browser(open_page):
    page = open_page()
    refusal = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (fault) { return fault.name; } }"
    )
    assert refusal == "TypeError"
    assert "requires 'TrustedHTML' assignment" in open_page.complaints.pop()


def test_everything_can_be_done_with_keys(open_page):
    page = open_page(reduced_motion="no-preference")
    press = page.keyboard.press
    user = page.get_by_role("combobox", name="Pick or type a user")
    for _ in range(3):  # the way past the list, the colours, the visitor
        press("Tab")
    expect(user).to_be_focused()
    page.locator("#users li").first.wait_for()
    press("ArrowDown")
    press("ArrowDown")
    chosen = page.locator("#users [aria-selected=true]")
    assert user.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    name = chosen.inner_text()
    assert told_after(page, lambda: press("Enter")).startswith(f"User {name}.")
    page.locator("#history button").first.wait_for()

    field = search(page, "cotton")
    press("Escape")
    expect(page.locator("#found")).to_be_hidden()
    assert (field.get_attribute("aria-expanded"), field.input_value()) == ("false", "cotton")
    press("Escape")
    assert field.input_value() == ""
    search(page, "cotton")
    press("ArrowUp")
    last = page.locator("#found li .name").last.inner_text()
    told_after(page, lambda: press("Enter"))
    assert events(page) == [last]

    page.locator(".list button").first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement, '::after').outlineStyle") == "solid"
    press("ArrowDown")
    second = titles(page)[1]
    told_after(page, lambda: press("Enter"))
    assert events(page) == [last, second]
    assert page.evaluate("document.activeElement.textContent") == titles(page)[1]
    press("End")
    assert page.evaluate("document.activeElement.textContent") == titles(page)[-1]

    page.locator("#events button").last.focus()
    told_after(page, lambda: press("Delete"))
    assert events(page) == [last]
    assert page.evaluate("document.activeElement.ariaLabel") == f"Remove {last} from the session"
    told_after(page, lambda: press("Enter"))
    expect(page.locator("#search")).to_be_focused()


def test_who_and_what_is_unknown_is_told(open_page):
    page = open_page("#item=nobody-sells-this")
    assert events(page) == ["nobody-sells-this"]
    assert "1 of 1 items are unknown to the model" in page.locator(".note").first.inner_text()
    page.locator("#user").fill("typed, and not entered")
    page.locator("#search").focus()
    expect(page.locator("#user")).to_have_value("")
    choose_user(page, "../../etc/passwd")
    assert "Nothing is known of the user '../../etc/passwd'" in page.locator("#no-history").inner_text()
    assert "404" in open_page.complaints.pop()  # the browser's own line about the answer


def test_a_reload_shows_the_same(open_page):
    page = open_page("#user=u00004&item=sku-00001&item=sku-00004&channel=mail&model-1=3")
    shown = titles(page), titles(page, 1), events(page), page.locator("#user").input_value()
    assert shown[2]
    assert shown[3] == "u00004"
    page.reload()
    page.locator(".list li").first.wait_for()
    assert (titles(page), titles(page, 1), events(page), page.locator("#user").input_value()) == shown


@pytest.mark.parametrize("models", ["", "&model-1=3"], ids=["one", "two"])
def test_on_a_phone_nothing_is_cut_off(models, open_page, picture):
    state = f"#user=u00004&item=sku-00001&item=sku-00004{models}"
    page = open_page(state, size=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    wide = page.locator("main *").evaluate_all(
        "all => all.filter((each) => !each.closest('#history') && each.getBoundingClientRect().right > innerWidth)"
        ".map((each) => each.outerHTML)"
    )
    assert wide == []
    if not models:
        page.set_viewport_size({"width": 360, "height": 1000})
        picture(page, "online-phone", full=False)


def test_colours_follow_the_system_until_somebody_chooses(open_page):
    def paper(page):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert paper(open_page(color_scheme="light")) > 200
    page = open_page(color_scheme="dark")
    assert paper(page) < 50
    page.get_by_text("Light", exact=True).click()
    assert paper(page) > 200
    page.reload()
    assert paper(page) > 200
    assert page.get_by_label("Light").is_checked()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(colours, size, open_page):
    empty = open_page(size=size, color_scheme=colours)
    full = open_page("#user=u00004&item=sku-00001&item=sku-00000&model-1=3", size=size, color_scheme=colours)
    search(full, "silk").press("ArrowDown")
    full.locator("#found [aria-selected=true]").wait_for()
    for page in (empty, full):
        found = Axe().run(page)
        assert found.response["violations"] == [], found.generate_report()


def test_an_endpoint_that_is_gone_is_told(start, browser):
    with start() as (process, address), contextlib.closing(browser.new_page()) as page:
        page.goto(f"{address}/#item=sku-00001")
        page.locator(".list li").first.wait_for()
        process.kill()
        process.wait()
        page.get_by_role("button", name="Clear").click()
        expect(page.get_by_role("alert")).to_have_text(
            "The endpoint does not answer. Is `nightjar serve` still running?"
        )
