/* Hash table from pointers to integers, with linear probing; it never shrinks. */

#ifndef TALKERVIZ_POINTER_TABLE_H
#define TALKERVIZ_POINTER_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  const void *key;
  int64_t value; /* not negative; -1 once removed */
} PointerSlot;

typedef struct {
  PointerSlot *slots;
  size_t used, mask; /* mask + 1 slots, at most half of them used */
} PointerTable;

static inline size_t pointer_hash(const void *pointer) {
  return (size_t)(((uint64_t)(uintptr_t)pointer >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20);
}

/* Returns the value of a pointer; -1 if it has none. */
static inline int64_t pointer_get(const PointerTable *table, const void *key) {
  if (table->slots == NULL) return -1;
  for (size_t at = pointer_hash(key) & table->mask;; at = (at + 1) & table->mask) {
    if (table->slots[at].key == key) return table->slots[at].value;
    if (table->slots[at].key == NULL) return -1;
  }
}

/* Sets the value of a pointer. Returns 0, or -1 if out of memory. */
static inline int pointer_put(PointerTable *table, const void *key, int64_t value) {
  if (table->slots == NULL || table->used * 2 > table->mask) {
    size_t size = table->slots == NULL ? 64 : (table->mask + 1) * 2;
    PointerTable grown = {NULL, 0, 0};
    grown.slots = calloc(size, sizeof(PointerSlot));
    grown.mask = size - 1;
    if (grown.slots == NULL) return -1;
    for (size_t at = 0; table->slots != NULL && at <= table->mask; at++)
      if (table->slots[at].key != NULL) pointer_put(&grown, table->slots[at].key, table->slots[at].value);
    free(table->slots);
    *table = grown;
  }
  size_t at = pointer_hash(key) & table->mask;
  while (table->slots[at].key != NULL && table->slots[at].key != key) at = (at + 1) & table->mask;
  if (table->slots[at].key == NULL) table->used++;
  table->slots[at].key = key;
  table->slots[at].value = value;
  return 0;
}

static inline void pointer_clear(PointerTable *table) {
  free(table->slots);
  table->slots = NULL;
  table->used = table->mask = 0;
}

#endif
