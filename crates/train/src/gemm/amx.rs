//! The block kernel on Intel AMX. Rust has no stable intrinsics for it, so the instructions stand in assembly.

use super::{BLOCK, Then, Tile};

/// Whether the CPU has the instructions and the kernel lets this process use them.
pub(super) fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use std::sync::OnceLock;
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(x86::request)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    /// `arch_prctl` operation that asks for a state component, and the number of the tiles' one.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;

    pub(super) fn request() -> bool {
        let wanted = AMX_BF16 | AMX_TILE;
        if __cpuid_count(7, 0).edx & wanted != wanted {
            return false;
        }
        // SAFETY: the call reads its two integers only; it grants the process tile registers or fails.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    /// Configuration of the eight tiles: 16 rows of 64 bytes each.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIG: TileConfig = TileConfig {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    pub(super) fn configure() {
        // SAFETY: `available` has been true, and CONFIG is a valid configuration of 64 bytes.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
    }

    pub(super) fn release() {
        // SAFETY: drops the tile state, which no other code holds.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// Where a block's sums go.
    pub(super) struct Target {
        pub(super) out: *mut u8,
        pub(super) stride_bytes: usize,
        /// Whether they are added to what stands there.
        pub(super) add: bool,
    }

    /// # Safety
    /// The tiles must be configured; `left` and `right` point to `depth` tiles each, and `target.out` to 32 rows of 32 values
    /// that are `stride_bytes` apart.
    pub(super) unsafe fn block(left: [*const u8; 2], right: [*const u8; 2], depth: usize, target: Target) {
        // SAFETY: as the function asks.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jz 3f",
                "tileloadd tmm0, [{c0} + {ldc}]",
                "tileloadd tmm1, [{c0} + {ldc} + 64]",
                "tileloadd tmm2, [{c1} + {ldc}]",
                "tileloadd tmm3, [{c1} + {ldc} + 64]",
                "jmp 2f",
                "3:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {s}]",
                "tileloadd tmm6, [{b0} + {s}]",
                "tileloadd tmm7, [{b1} + {s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {s}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {depth}",
                "jnz 2b",
                "tilestored [{c0} + {ldc}], tmm0",
                "tilestored [{c0} + {ldc} + 64], tmm1",
                "tilestored [{c1} + {ldc}], tmm2",
                "tilestored [{c1} + {ldc} + 64], tmm3",
                a0 = inout(reg) left[0] => _,
                a1 = inout(reg) left[1] => _,
                b0 = inout(reg) right[0] => _,
                b1 = inout(reg) right[1] => _,
                depth = inout(reg) depth => _,
                add = in(reg) usize::from(target.add),
                c0 = in(reg) target.out,
                c1 = in(reg) target.out.add(16 * target.stride_bytes),
                ldc = in(reg) target.stride_bytes,
                s = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// The tiles of this thread, configured; released when it is dropped.
pub(super) struct Tiles {
    /// Tiles belong to the thread that configured them.
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    pub(super) fn configure() -> Self {
        assert!(available(), "AMX was asked for where it is not");
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        x86::configure();
        Self { _of_this_thread: std::marker::PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        x86::release();
    }
}

/// See [`super::BlockKernel`].
pub(super) fn block(
    _configured: &Tiles,
    left: [&[Tile]; 2],
    right: [&[Tile]; 2],
    out: &mut [f32],
    stride: usize,
    then: Then,
) {
    let depth = left[0].len();
    assert!([left[1].len(), right[0].len(), right[1].len()] == [depth; 3] && depth > 0);
    assert!(out.len() >= (BLOCK - 1) * stride + BLOCK);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: lengths are checked above, and the tiles of this thread are configured.
    unsafe {
        let (left, right) = (left.map(|t| t.as_ptr().cast()), right.map(|t| t.as_ptr().cast()));
        x86::block(
            left,
            right,
            depth,
            x86::Target { out: out.as_mut_ptr().cast(), stride_bytes: stride * 4, add: then == Then::Add },
        );
    }
}
