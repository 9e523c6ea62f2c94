"""The page of a scan."""

from __future__ import annotations

from pathlib import Path

from pastille.report.heatmap import heat_page, render_heat_map, write_heat_map
from pastille.values.scanned import Effect, Scan, Technique


def effect(technique: Technique, layer: str, level: float, loss: float, **more: object) -> Effect:
    given: dict[str, object] = {
        "loss_low": loss - 0.01,
        "loss_high": loss + 0.01,
        "metric": 0.1 * loss,
        "cases": 64,
        **more,
    }
    return Effect(technique=technique, layer=layer, level=level, loss=loss, **given)  # type: ignore[arg-type]


def a_scan(**changed: object) -> Scan:
    evil = "<script>alert(1)</script>"
    effects = (
        effect("pruning", evil, 0.25, 0.5, group=f"sex={evil}", group_loss=0.75),
        effect("pruning", evil, 0.5, 2.0),
        effect("pruning", "late", 0.25, 0.004),
        effect("pruning", "late", 0.5, 0.2),
        effect("quantization", "late", 8, -0.001),
    )
    given: dict[str, object] = {
        "model_digest": "m",
        "data_digest": "d",
        "metric": "accuracy",
        "baseline_metric": 0.9,
        "baseline_loss": 0.3,
        "confidence": 0.95,
        "effects": effects,
        "layers": {evil: 10, "late": 2000},
        "skipped": {"head": f"because {evil}"},
        "seconds": 12.0,
        **changed,
    }
    return Scan(**given)  # type: ignore[arg-type]


def test_text_is_escaped_and_nothing_is_fetched() -> None:
    page = render_heat_map(a_scan(), name="<b>")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "<title>&lt;b&gt;" in page
    assert "http://" not in page
    assert "https://" not in page


def test_cells_are_darker_the_more_is_lost() -> None:
    pruning, quantization = heat_page(a_scan(), name="x").maps
    (first, late) = pruning.rows
    heats = [cell.heat for row in (late, first) for cell in row.cells if cell]
    assert heats == sorted(heats)
    assert heats[0] == 0  # its interval holds 0
    assert heats[-1] == 10
    assert quantization.rows[0].cells[0] is not None
    assert quantization.rows[0].cells[0].heat == 0
    assert first.cells[0] is not None
    assert first.cells[0].group.endswith("+0.750")
    assert pruning.most[1] == "late"


def test_what_the_numbers_hold_for_is_said() -> None:
    effects = (
        effect("pruning", "late", 0.25, 0.5, group="sex=f", group_loss=0.75, group_low=0.6),
        effect("pruning", "late", 0.5, 0.5, loss_low=None, loss_high=None),
    )
    page = render_heat_map(a_scan(effects=effects, criterion="taylor"), name="x")
    assert "sex=f +0.750, at least +0.600" in page
    assert "too few cases for an interval" in page
    assert "least important by</dt><dd>taylor" in page
    assert "except where a LayerNorm, a GroupNorm or a mean is taken over them" in page
    (found,) = heat_page(a_scan(effects=effects), name="x").maps
    assert [cell.heat for cell in found.rows[0].cells if cell] == [10, 0]


def test_a_level_that_was_not_tried_says_so() -> None:
    kept = tuple(e for e in a_scan().effects if (e.layer, e.level) != ("late", 0.5))
    page = render_heat_map(a_scan(effects=kept, stopped={"pruning of late": "nothing is left"}), name="x")
    assert page.count("not tried</td>") == 1
    assert "nothing is left" in page


def test_a_scan_that_found_nothing_has_a_page(tmp_path: Path) -> None:
    write_heat_map(a_scan(effects=(), skipped={}), tmp_path / "scan.html", name="x")
    assert "How it was measured" in (tmp_path / "scan.html").read_text(encoding="utf-8")


def test_the_ranking_counts_a_level_that_was_left_out_as_the_one_before() -> None:
    found = a_scan(
        effects=(
            effect("pruning", "a", 0.25, 3.0),
            effect("pruning", "b", 0.25, 0.1),
            effect("pruning", "b", 0.5, 4.0),
        )
    )
    assert found.ranking("pruning") == ("a", "b")
    assert found.levels("quantization") == ()
