/* app_heal: what screen 3 remembers of healing. Part of ui/app.h. */
#ifndef MLATHE_UI_APP_HEAL_H
#define MLATHE_UI_APP_HEAL_H

#include "sessions/job_heal.h"

enum heal_phase { HEAL_OFF, HEAL_RUNNING, HEAL_PAUSED, HEAL_DONE, HEAL_FAILED };
struct heal_screen {
    enum heal_phase phase;
    bool pausing; /* the job is asked to stop, to go on later */
    struct heal_options how; /* as it was asked for, without its folder */
    char *file, *from, *dir; /* text; folders of the conversion before and after */
    double *train, *held;    /* [n] KL of each step; the last one measured */
    size_t n, cap;
    struct heal_point last;
    double kl_before, kl_best;
    double started_sec;
    char end[160], trouble[512];
};

#endif
