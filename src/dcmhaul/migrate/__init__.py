"""Migration: plan, run, ledger, report."""
