//! A request is made once, however often it is sent under its key: there are as many audit records as requests that
//! were acknowledged.

use crate::crash_store::Disk;
use crate::workload::Ledger;

pub(crate) fn check(disk: &Disk, ledger: &Ledger) -> Result<(), String> {
    let (made, told) = (disk.audits(), ledger.acknowledged());
    if (told..=told + ledger.unsure).contains(&made) {
        return Ok(());
    }
    Err(format!(
        "{told} requests were acknowledged, {} were not answered, {made} were made",
        ledger.unsure
    ))
}
