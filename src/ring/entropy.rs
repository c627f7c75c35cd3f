//! The one place that asks the kernel for randomness.

/// Bytes of the kernel's generator, which nobody can guess.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256, "the kernel gives so much at once, without being interrupted") };
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most N bytes, and `bytes` has them.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    assert!(got == N as isize, "getrandom exists on every Linux, and fails for no small request");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_secrets_are_the_same() {
        let all: std::collections::HashSet<[u8; 8]> = (0..1000).map(|_| random_bytes()).collect();
        assert_eq!(all.len(), 1000);
    }
}
