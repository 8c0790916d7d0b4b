-- Ledger and reviews are append-only. One statement per paragraph.
CREATE TRIGGER IF NOT EXISTS ledger_event_no_update BEFORE UPDATE ON ledger_event
BEGIN
    SELECT RAISE(ABORT, 'ledger_event is append-only');
END;

CREATE TRIGGER IF NOT EXISTS ledger_event_no_delete BEFORE DELETE ON ledger_event
BEGIN
    SELECT RAISE(ABORT, 'ledger_event is append-only');
END;

-- INSERT OR REPLACE removes the row in its way without asking the trigger above.
CREATE TRIGGER IF NOT EXISTS ledger_event_no_replace BEFORE INSERT ON ledger_event
WHEN EXISTS (SELECT 1 FROM ledger_event WHERE id = NEW.id OR hash = NEW.hash)
BEGIN
    SELECT RAISE(ABORT, 'ledger_event is append-only');
END;

CREATE TRIGGER IF NOT EXISTS review_no_update BEFORE UPDATE ON review
BEGIN
    SELECT RAISE(ABORT, 'review is append-only');
END;

-- A review goes with its inspection, when retention takes the rows, and at no other time.
CREATE TRIGGER IF NOT EXISTS review_no_delete BEFORE DELETE ON review
WHEN EXISTS (SELECT 1 FROM inspection WHERE id = OLD.inspection_id)
BEGIN
    SELECT RAISE(ABORT, 'review is append-only');
END;

CREATE TRIGGER IF NOT EXISTS review_no_replace BEFORE INSERT ON review
WHEN EXISTS (SELECT 1 FROM review WHERE id = NEW.id OR supersedes_id = NEW.supersedes_id)
BEGIN
    SELECT RAISE(ABORT, 'review is append-only: this answer was corrected already');
END;
