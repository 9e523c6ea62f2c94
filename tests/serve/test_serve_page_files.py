"""The files of the page `/`, without a browser."""

from __future__ import annotations

import re
from importlib import resources

from pastille.serve.page import CONTENT_POLICY, page_files


def test_files_need_nothing_from_elsewhere_and_nothing_that_the_policy_forbids() -> None:
    files = {path: body.decode() for path, (_, body) in page_files().items()}
    assert {"/", "/page/page.css", "/page/page.js"} <= files.keys()
    for path, text in files.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", files["/"])
    assert "innerHTML" not in "".join(files.values())


def test_every_module_that_is_imported_is_served() -> None:
    files = page_files()
    for path, (media_type, body) in files.items():
        if media_type.startswith("text/javascript"):
            named = re.findall(r'from "\./([\w.]+)"', body.decode())
            assert {f"/page/{name}" for name in named} <= files.keys(), path


def test_colours_are_those_of_the_report() -> None:
    report = resources.files("pastille.report").joinpath("report.css").read_text()
    page = page_files()["/page/page.css"][1].decode()

    def colours(css: str) -> list[tuple[str, str]]:
        light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
        return re.findall(r"(--[\w-]+): (#\w+)", light) + re.findall(r"(--[\w-]+): (#\w+)", dark)

    assert colours(page) == colours(report)


def test_policy_lets_in_nothing_from_elsewhere_and_no_inline_code() -> None:
    directives = dict(part.split(" ", 1) for part in CONTENT_POLICY.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert "unsafe" not in CONTENT_POLICY
    assert not re.search(r"https?:|\*", CONTENT_POLICY)
