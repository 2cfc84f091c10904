/* Keeps the library non-empty until the screens arrive. */
int ui_placeholder(void);
int ui_placeholder(void)
{
    return 0;
}
