"""The report: one self-contained HTML page, made from nothing but a `pastille.record.Record`."""

from pastille.report.html import render, write_report

__all__ = ["render", "write_report"]
