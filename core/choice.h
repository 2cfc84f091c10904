/* choice: multiple-choice questions, read from the files in which they are published and put into
 * the words of the usual protocol (EleutherAI's lm-evaluation-harness, zero examples). What a model
 * is asked is how likely each ending is after its context; the two are joined by one space. */
#ifndef MLATHE_CORE_CHOICE_H
#define MLATHE_CORE_CHOICE_H

#include "core/base.h"

enum choice_task {
    CHOICE_ARC,        /* "Question: …\nAnswer:" and the answers */
    CHOICE_HELLASWAG,  /* the beginning, and four endings */
    CHOICE_PIQA,       /* "Question: …\nAnswer:" and two solutions */
    CHOICE_WINOGRANDE, /* partial scoring: the sentence up to and with an option; what follows */
    CHOICE_OBQA,       /* the question, and the answers */
    CHOICE_MMLU,       /* the subject, the question with lettered answers, and the letters */
    CHOICE_TASKS
};
#define CHOICE_MAX 26 /* answers of a question */

struct choice_answer {
    char *context, *ending; /* neither is empty */
};
struct choice_item {
    int n, gold; /* 2 ≤ n ≤ CHOICE_MAX, 0 ≤ gold < n */
    struct choice_answer answer[CHOICE_MAX];
};
struct choice_set {
    enum choice_task task;
    struct choice_item *item;
    size_t n, cap;
};

const char *choice_name(enum choice_task task); /* "arc" … */
bool choice_find(const char *name, enum choice_task *task);
/* The task that a file's name speaks of; false when none. */
bool choice_guess(const char *path, enum choice_task *task);

/* Reads the first limit questions (0: all) into a zeroed set; choice_done it in any case. Forms:
 * arc, piqa, winogrande, obqa (and hellaswag) as a JSON list or JSON lines, of the instruction form
 * ("… Answer1: … Answer format: answer1/…", key "answer") or with the data sets' own keys;
 * hellaswag also as llama.cpp's text, six lines a question; mmlu as CSV (question, four answers,
 * letter or index), a file or a folder of them (limit: of each). Refuses, naming the question, what
 * lacks a part, has an empty one, or has a label that is none. */
int choice_read(struct choice_set *out, enum choice_task task, const char *path, long limit,
                struct err *e);
void choice_done(struct choice_set *s);

/* A question as the readers (choice_file.c) find it; NULL or empty: not there. */
struct choice_draft {
    int n, gold; /* gold −1: the label names no answer */
    char *question, *ending[CHOICE_MAX];
};
/* Puts it into the protocol's words. subject: of MMLU; where: the file, for errors. */
int choice_add(struct choice_set *s, const struct choice_draft *d, const char *subject,
               const char *where, struct err *e);

#endif
