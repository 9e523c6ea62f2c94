"""How much each layer minds being pruned or quantized."""

from pastille.stages.scanning.scan import ScanSettings, scan, scan_pruning

__all__ = ["ScanSettings", "scan", "scan_pruning"]
