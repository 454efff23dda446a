"""How strangers are paid: settlement rails, wallet, receipts, audit log."""
