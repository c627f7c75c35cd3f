import unittest

import wire

COPY_DATA = wire.message(b"d", b"x" * 1001)
COMPLETE = wire.message(b"C", b"COPY 3\0")
READY = wire.message(b"Z", b"I")


class DeframerCutsMessages(unittest.TestCase):
    def test_counts_data_and_hands_out_the_rest(self):
        deframer = wire.Deframer()
        self.assertEqual(deframer.feed(COPY_DATA * 3 + COMPLETE + READY), [(b"C", b"COPY 3\0"), (b"Z", b"I")])
        self.assertEqual(deframer.counted_bytes, 3003)

    def test_any_split_gives_the_same(self):
        stream = wire.message(b"R", b"\0\0\0\0") + COPY_DATA + COMPLETE + READY
        whole = wire.Deframer().feed(stream)
        for cut in range(len(stream)):
            deframer = wire.Deframer()
            self.assertEqual(deframer.feed(stream[:cut]) + deframer.feed(stream[cut:]), whole)
            self.assertEqual(deframer.counted_bytes, 1001)

    def test_byte_by_byte(self):
        deframer, found = wire.Deframer(), []
        for byte in COPY_DATA + READY:
            found += deframer.feed(bytes([byte]))
        self.assertEqual(found, [(b"Z", b"I")])


class MessagesAreWellFormed(unittest.TestCase):
    def test_query(self):
        self.assertEqual(wire.query_message("SELECT 1"), b"Q\0\0\0\x0dSELECT 1\0")

    def test_startup(self):
        startup = wire.startup_message("u", "d")
        self.assertEqual(int.from_bytes(startup[:4]), len(startup))
        self.assertEqual(startup[4:], b"\0\x03\0\0user\0u\0database\0d\0\0")

    def test_errors(self):
        body = b"SFATAL\0VFATAL\0C53300\0Mtoo many clients\0\0"
        self.assertEqual(wire.error_text(body), "FATAL: too many clients (53300)")
        self.assertTrue(wire.error_is_final(body))
        self.assertFalse(wire.error_is_final(b"SERROR\0C42601\0Msyntax\0\0"))


if __name__ == "__main__":
    unittest.main()
