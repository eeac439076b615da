//! Memory that the allocator holds and nobody uses, given back to the system ([ADR 0013](../../../docs/adr/0013-allocator.md)).

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The allocator keeps free memory for a second: it may be needed again at once.
const KEPT: Duration = Duration::from_millis(1_500);

/// Whether a thread waits for that.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Takes memory in pages of 4 KiB from now on. A huge page has 2 MiB, whatever of it is used.
pub fn without_huge_pages() {
    // A kernel that does not know this has none.
    let _unknown = nix::sys::prctl::set_thp_disable(true);
}

/// Has free memory given back in a moment: to be called after much of it was needed for a short time. The allocator does
/// it when a thread ends; a quiet node would keep it until then.
pub(crate) fn give_back_soon() {
    if WAITING.swap(true, Ordering::AcqRel) {
        return;
    }
    let thread = thread::Builder::new().name("memory".to_owned()).spawn(|| {
        thread::sleep(KEPT);
        WAITING.store(false, Ordering::Release);
        // Only a thread that has had memory gives it back.
        drop(black_box(Box::new(0_u8)));
    });
    if thread.is_err() {
        WAITING.store(false, Ordering::Release);
    }
}
